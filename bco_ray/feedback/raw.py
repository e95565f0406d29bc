"""What every reader of files yields: rows as JSON bytes, and what could not be read as rows with a problem."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

MAX_LINE_BYTES = 64 << 20
"""A row longer than this costs itself."""
_SHOWN_BYTES = 1 << 10


class RawRow(NamedTuple):
    """`position` is the byte offset in a plain file of lines, the row's number otherwise; `raw` its JSON.

    `problem` is None, or `reason: detail` in the words of schema.LINES.
    """

    position: int
    raw: bytes
    problem: str | None = None


class BrokenOff(Exception):  # noqa: N818 - a verdict on a file's content
    """From here on a file makes no sense; its message says why."""


def too_long(position: int, start: bytes, limit_bytes: int) -> RawRow:
    """The row that stands for one beyond the limit; its beginning is kept to be recognised by."""
    return RawRow(position, start[:_SHOWN_BYTES], f"line_too_long: longer than {limit_bytes} bytes")


def to_json(value: dict[str, Any]) -> bytes:
    """A row as JSON. NaN and infinities become null, times ISO 8601, other things text.

    Raises TypeError, ValueError or RecursionError for what has no JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_text).encode()
    except ValueError:  # NaN, or half a surrogate pair, which only escapes can spell
        return json.dumps(_finite(value), allow_nan=False, default=_as_text).encode()


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
