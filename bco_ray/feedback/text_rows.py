"""Rows of text files that hold one value per line, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.feedback import raw
from bco_ray.feedback.raw import RawRow, too_long

File = Any
"""A BufferedReader, GzipFile or ZstdFile."""

BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1 << 20


def line_rows(file: File, start: int = 0, end: int | None = None) -> Iterator[RawRow]:
    """Non-blank lines whose first byte is in [start, end), each at its byte offset."""
    if start:
        file.seek(start - 1)
        skip_line(file)
    position = file.tell() if start else 0
    while end is None or position < end:
        line, length = read_line(file)
        if not length:
            return
        line = line if position else line.removeprefix(BOM)
        if len(line) > raw.MAX_LINE_BYTES:
            yield too_long(position, line, raw.MAX_LINE_BYTES)
        elif line.strip():
            yield RawRow(position, line)
        position += length


def numbered(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """The same rows at their numbers: an offset into what a file unpacks to helps nobody."""
    return (row._replace(position=number) for number, row in enumerate(rows))


def read_line(file: File) -> tuple[bytes, int]:
    """One line without its ending, and the bytes it took. A line beyond the limit comes back longer than the limit,
    though not whole; 0 bytes at the end of the file."""
    line: bytes = file.readline(raw.MAX_LINE_BYTES + 2)
    length = len(line)
    if length == raw.MAX_LINE_BYTES + 2 and not line.endswith(b"\n"):
        return line, length + skip_line(file)
    return line.rstrip(b"\r\n"), length


def skip_line(file: File) -> int:
    """Read on to the next line; the bytes that were passed over."""
    skipped = 0
    while piece := file.readline(_SKIP_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
