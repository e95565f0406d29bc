"""Rows of CSV files, in bounded memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

from bco_ray.feedback import raw
from bco_ray.feedback.raw import BrokenOff, RawRow, to_json, too_long
from bco_ray.feedback.text_rows import BOM, File, skip_line


def csv_rows(file: File) -> Iterator[RawRow]:
    """The rows of a CSV file with a header, numbered; raises BrokenOff for a bad header or a quote never closed.

    An empty cell is a missing key. A cell that is a JSON list or object is one, so that messages fit in a column.
    """
    csv.field_size_limit(raw.MAX_LINE_BYTES)
    feed = _CsvLines(file)
    reader = csv.reader(feed, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        feed.taken.clear()
        try:
            cells = next(reader)
            feed.check()
            if header is None and cells:
                header = _header(cells)
            elif header and cells:
                yield RawRow(number, to_json(_fields(header, cells)))
                number += 1
        except StopIteration:
            return
        except (csv.Error, ValueError, RecursionError) as error:
            if header is None or feed.ended:
                raise BrokenOff(f"CSV: {error}") from None
            yield feed.refused(number, error)
            number += 1


class _CsvLines:
    """A file's lines as text for csv.reader, remembered until a row is done."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._at_start = True
        self.taken: list[bytes] = []
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(raw.MAX_LINE_BYTES + 2)
        self.ended = not line
        if not line:
            raise StopIteration
        if self._at_start:
            line, self._at_start = line.removeprefix(BOM), False
        self.taken.append(line)
        if len(line) == raw.MAX_LINE_BYTES + 2 and not line.endswith(b"\n"):
            skip_line(self._file)
            raise csv.Error("line too long")
        return str(line, "utf-8", "surrogateescape")

    def check(self) -> None:
        """Raises UnicodeDecodeError if the row is not UTF-8."""
        b"".join(self.taken).decode()

    def refused(self, number: int, error: Exception) -> RawRow:
        """The row that stands for the lines taken."""
        taken = b"".join(self.taken)
        if len(taken) > raw.MAX_LINE_BYTES:
            return too_long(number, taken, raw.MAX_LINE_BYTES)
        return RawRow(number, taken, f"bad_csv_row: {error}")


def _header(cells: list[str]) -> list[str]:
    names = [name.strip() for name in cells]
    double = [name for name in names if name and names.count(name) > 1]
    if double:
        raise BrokenOff(f"CSV: the header names {double[0]!r} twice")
    return names


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise csv.Error(f"{len(cells)} cells under a header of {len(header)}")
    return {name: _cell(cell) for name, cell in zip(header, cells, strict=True) if cell and name}


def _cell(cell: str) -> Any:
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
