"""A log of one's own shape: which field of a record lies where in a row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from bco_ray.errors import Refused, SpecError
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.schema import Record

REQUIRED = ("prompt", "completion", "label")
_TARGETS = frozenset(Record.model_fields) - {"label_raw"}
_NOWHERE = object()
_INDEX = re.compile("[0-9]{1,9}")


def mapped(map: Mapping[str, str]) -> Format:
    """The format of `data.format: {map: {field: path}}`. Raises SpecError for an unknown field or one that is missing.

    A path is a column's name, or keys and list indices joined by dots (`choices.0.message.content`).
    """
    unknown, missing = sorted(set(map) - _TARGETS), [field for field in REQUIRED if field not in map]
    if unknown:
        raise SpecError(
            f"data.format.map: {', '.join(unknown)}: no such field; there are {', '.join(sorted(_TARGETS))}."
        )
    if missing:
        raise SpecError(f"data.format.map: {', '.join(missing)} is missing; prompt, completion and label are needed.")
    return Format("map", _any_row, partial(_read, dict(map)))


def _any_row(row: Row) -> bool:
    return True


def _read(map_: Mapping[str, str], row: Row) -> Iterator[Entry | Refused]:
    found = {field: look_up(row, path) for field, path in map_.items()}
    fields = {field: value for field, value in found.items() if value is not _NOWHERE}
    gone = [field for field in REQUIRED if field not in fields]
    if gone:
        raise Refused(f"missing_{gone[0]}", f"the row has nothing at {map_[gone[0]]!r} (data.format.map.{gone[0]})")
    yield Entry(fields)


def look_up(row: Row, path: str) -> Any:
    """The value at a path, or a marker that nothing is there (null is something). A column's name may have dots."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and _INDEX.fullmatch(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return _NOWHERE
    return value
