"""Rows of JSON files that are no lines: one array, or values one after another.

A JSON array is cut into its elements by brackets and quotes alone and each element is passed on as its own bytes. So
memory holds one element, a broken element costs one row, and NaN, lone surrogates, invalid UTF-8, any nesting and
any number are left to whoever decodes the row; an incremental parser (ijson) stops at the first of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from bco_ray.feedback import raw
from bco_ray.feedback.raw import BrokenOff, RawRow, too_long
from bco_ray.feedback.text_rows import BOM, File, line_rows, numbered

_CHUNK_BYTES = 1 << 20
_BLANK = b" \t\r\n"
_BETWEEN = re.compile(rb'[^"\[\]{},]*+')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def json_rows(file: File) -> Iterator[RawRow]:
    """The elements of an array, the lines of JSON lines, or values one after another, whichever the file starts as."""
    if _first_byte(file) == b"[":
        file.seek(0)
        return _values(_chunks(file), array=True)
    file.seek(0)
    lines = _is_lines(file)
    file.seek(0)
    return numbered(line_rows(file)) if lines else _values(_chunks(file), array=False)


def _chunks(file: File) -> Iterator[bytes]:
    # read1 hands out what there is before it raises at a torn end
    while chunk := file.read1(_CHUNK_BYTES):
        yield chunk


def _first_byte(file: File) -> bytes:
    return next((text[:1] for chunk in _chunks(file) if (text := chunk.lstrip(BOM + _BLANK))), b"")


def _is_lines(file: File) -> bool:
    """Whether the first line is a value by itself, or broken but followed by the start of another."""
    shown = (line.raw for line in line_rows(file))
    try:
        json.loads(next(shown, b"{}"))
    except RecursionError:
        return True
    except ValueError:
        return next(shown, b"").lstrip().startswith(b"{")
    return True


def _values(chunks: Iterator[bytes], *, array: bool) -> Iterator[RawRow]:
    """Raises BrokenOff where the array or value ends too early or goes on too long."""
    cutter = _Cutter(array)
    number = 0
    for chunk in chunks:
        for value, whole in cutter.feed(chunk):
            yield RawRow(number, value) if whole else too_long(number, value, raw.MAX_LINE_BYTES)
            number += 1
    cutter.check_end()


class _Cutter:
    """Cuts a stream into values: those of one array, or those on the top level."""

    def __init__(self, array: bool) -> None:
        self._array = array
        self._depth = 0
        self._in_string = False
        self._value = bytearray()
        self._rest = b""
        self._opened = not array
        self._closed = False

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bool]]:
        """Values that end in this chunk, and whether each is whole (else it was beyond the limit)."""
        data = self._rest + chunk if self._opened else self._open(chunk)
        at = kept = 0
        while not self._closed and (at := self._next(data, at)) < len(data):
            sign, at = data[at : at + 1], at + 1
            if sign == b'"':
                self._in_string = not self._in_string
            elif sign == b"\\":  # the last byte: what it escapes comes with the next chunk
                at -= 1
                break
            elif self._ends_value(sign):
                self._keep(data[kept : at - 1] if self._array else data[kept:at])
                kept = at
                if value := self._take():
                    yield value
        if self._closed and data[at:].strip(_BLANK):
            raise BrokenOff("more follows after the end of the array")
        self._rest = b"" if self._closed else data[at:]
        self._keep(data[kept:at])

    def check_end(self) -> None:
        """Raises BrokenOff if the stream may not end here."""
        if self._array and not self._closed:
            raise BrokenOff("the array breaks off")
        if self._take() or self._in_string:
            raise BrokenOff("the last value breaks off")

    def _open(self, data: bytes) -> bytes:
        start = data.find(b"[")
        self._opened, self._depth = start >= 0, 1
        return data[start + 1 :] if self._opened else b""

    def _next(self, data: bytes, at: int) -> int:
        match = (_IN_STRING if self._in_string else _BETWEEN).match(data, at)
        return match.end() if match else at

    def _ends_value(self, sign: bytes) -> bool:
        """Count a sign outside strings. A closing bracket too many ends the array, or a value on the top level."""
        if sign in b"[{":
            self._depth += 1
            return False
        if sign == b",":
            return self._array and self._depth == 1
        self._depth = max(0, self._depth - 1)
        self._closed = self._array and self._depth == 0
        return self._depth == 0

    def _keep(self, piece: bytes) -> None:
        room = raw.MAX_LINE_BYTES + 1 - len(self._value)
        self._value += piece[:room]

    def _take(self) -> tuple[bytes, bool] | None:
        value = bytes(self._value).strip(_BLANK).removeprefix(BOM)
        whole = len(self._value) <= raw.MAX_LINE_BYTES
        self._value.clear()
        return (value, whole) if value else None
