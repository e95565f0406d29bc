"""Our own records (and the server's feedback log), which is TRL's unpaired shape: prompt, completion, label."""

from __future__ import annotations

from collections.abc import Iterator

from bco_ray.errors import Refused
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.schema import Record

_FIELDS = frozenset(Record.model_fields)


def recognises(row: Row) -> bool:
    """Text or messages; a missing label is refused later, by name."""
    return "prompt" in row and "completion" in row


def read(row: Row) -> Iterator[Entry | Refused]:
    """Every field of a record as it stands; other columns are none of our business."""
    yield Entry({key: value for key, value in row.items() if key in _FIELDS})


FORMAT = Format("canonical", recognises, read)
