"""Typed access to JSON of unknown shape: whatever a row holds, these give a value of one type, or None, or Refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bco_ray.errors import Refused

_MILLI, _MICRO, _NANO = 1e11, 1e14, 1e17  # a time from here on counts thousandths, millionths, billionths of a second
_LATEST = 253402300800.0  # the year 10000


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """`value` if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a JSON list."""
    return [item for item in items(value) if isinstance(item, dict)]


def text(value: Any) -> str | None:
    """`value` if it is text with something in it."""
    return value if isinstance(value, str) and value.strip() else None


def name(value: Any) -> str | None:
    """An id or a person: text as it is, a whole number as text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        return str(value)
    return text(value)


def names(value: Any) -> list[str]:
    """The texts in a JSON list, or a single one."""
    found = [name(item) for item in ([value] if isinstance(value, str) else items(value))]
    return [item for item in found if item is not None]


def first(source: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of `keys` that is there and not null."""
    return next((source[key] for key in keys if source.get(key) is not None), None)


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and list indices, None where it breaks off."""
    for step in path:
        if isinstance(step, str):
            value = mapping(value).get(step)
        else:
            value = items(value)[step] if -len(items(value)) <= step < len(items(value)) else None
    return value


def decoded(value: Any) -> Any:
    """JSON that was written as text inside JSON; text that is no JSON object or list stays text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def dumped(value: Any) -> str:
    """The opposite of `decoded`: text stays text. Raises Refused."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_field", f"cannot be written as text: {error}") from None


def seconds(value: Any) -> float | None:
    """Unix seconds, from ISO 8601 text (UTC if it names no zone) or a number of s, ms, us or ns. Raises Refused."""
    if value is None or value == "":
        return None
    try:
        return _seconds_of_text(value) if isinstance(value, str) else _seconds_of_number(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused("bad_time", f"{str(value)[:60]!r} is no time (ISO 8601, or a unix time)") from None


def _seconds_of_text(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        when = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return _seconds_of_number(number)


def _seconds_of_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    number = float(value)
    scale = next((s for bound, s in ((_NANO, 1e9), (_MICRO, 1e6), (_MILLI, 1e3)) if abs(number) >= bound), 1.0)
    if not math.isfinite(number) or abs(number / scale) >= _LATEST:
        raise ValueError
    return number / scale


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Only what says something: no nulls, no empty text, lists or objects."""
    return {key: value for key, value in fields.items() if value is not None and value not in ("", [], {})}


def scalars(**values: Any) -> dict[str, Any]:
    """Metadata: those values that are text, numbers or booleans (a free-form object does not belong in every row)."""
    return {
        key: value
        for key, value in present(values).items()
        if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    }


def shape(row: Mapping[str, Any]) -> str:
    """The keys of a row with the types of their values, for messages."""
    found = ", ".join(f"{key}: {type(value).__name__}" for key, value in list(row.items())[:30])
    return "{" + found + (", ...}" if len(row) > 30 else "}")


def wrong_shape(row: Mapping[str, Any], product: str) -> Refused:
    """The verdict on a row that is none of the shapes of a product's export."""
    return Refused("wrong_shape", f"not a row of a {product} export: {shape(row)}")
