"""A first look at an upload, so that a wrong file is refused now and not by a job an hour later.

Only the head is looked at: 100 rows or 4 MiB, unpacked. What is beyond it, and whether a row is a vote, reading finds
out (`feedback`); there a bad row costs itself.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from bco_ray.schema import is_unlabelled_chat
from bco_ray.storage.log_names import KNOWN, extension_of

LOOKED_AT_ROWS = 100
LOOKED_AT_BYTES = 4 << 20

Rows = Iterator[tuple[int, Any]]
"""Each row with the line it begins in (a CSV row: ends in), from 1."""

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_CUT_CHARACTERS = 16
"""So near to where the head was cut, broken JSON may be whole in the file: half an escape, half a number."""

_TORN = (EOFError, OSError, MemoryError, zlib.error, zstd.ZstdError, pa.ArrowException, ValueError)


class _BadRowError(Exception):
    """What is wrong, and in which line."""

    def __init__(self, line: int, why: object) -> None:
        super().__init__(f"line {line}: {why}")


def check_upload(path: Path, filename: str) -> str | None:
    """What is wrong with the file at `path`, in words that name it as its owner does (`filename`); None: nothing."""
    extension = extension_of(filename)
    if not extension:
        return f"{filename}: unknown file type; known are {KNOWN}."
    if path.stat().st_size == 0:
        return f"{filename}: the file is empty."
    try:
        found = _has_rows(path, extension)
    except _BadRowError as error:
        return f"{filename}, {error} Correct the file and upload it again."
    except _TORN as error:
        return f"{filename}: cannot be read as {extension} ({_first_line(error)}). Was it cut off, or named wrongly?"
    return None if found else f"{filename}: there are no rows in it."


def holds_unlabelled_chats(path: Path) -> bool:
    """Whether the first rows of an upload that was checked are conversations without a label, all of them."""
    extension = extension_of(path.name)
    kind = extension.split(".")[1]
    if kind in _TABLES:
        return False
    first = [row for _, row in islice(_READERS[kind](*_head(path, extension)), LOOKED_AT_ROWS)]
    return bool(first) and all(is_unlabelled_chat(row) for row in first)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]


def _has_rows(path: Path, extension: str) -> bool:
    """Raises _BadRowError, or one of _TORN."""
    kind = extension.split(".")[1]
    if kind in _TABLES:
        with path.open("rb") as file:  # not by path: pyarrow's errors would show it
            return _TABLES[kind](file)
    head, whole = _head(path, extension)
    found = not whole  # one row may be longer than the head
    for line, row in islice(_READERS[kind](head, whole), LOOKED_AT_ROWS):
        found = True
        if not isinstance(row, dict):
            raise _BadRowError(line, "not a JSON object; each row is one, with a vote in it.")
    return found


def _head(path: Path, extension: str) -> tuple[bytes, bool]:
    """The first bytes, unpacked, and whether that is all there is."""
    with _opened(path, extension) as file:
        head = file.read(LOOKED_AT_BYTES + 1)
    return head[:LOOKED_AT_BYTES].removeprefix(_BOM), len(head) <= LOOKED_AT_BYTES


def _opened(path: Path, extension: str) -> io.BufferedIOBase:
    if extension.endswith(".gz"):
        return gzip.open(path.open("rb"))
    return zstd.open(path.open("rb")) if extension.endswith(".zst") else path.open("rb")


def _lines(head: bytes, whole: bool) -> Rows:
    """JSON lines; one that the head's end cuts is left out."""
    for number, line in enumerate(io.BytesIO(head), 1):
        if (whole or line.endswith(b"\n")) and (text := _decoded(line, number).strip()):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _not_json(error, number) from None
            yield number, value


def _not_json(error: Exception, line: int) -> _BadRowError:
    where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
    return _BadRowError(line, f"not JSON ({where}).")


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise _BadRowError(number, "not UTF-8.") from None


def _values(head: bytes, whole: bool) -> Rows:
    """The elements of one array, or values one after another."""
    text = "".join(_text_lines(head, whole=True, torn_end=not whole))
    at = _after_blanks(text, 0)
    array = text.startswith("[", at)
    at = _after_blanks(text, at + array)
    while at < len(text) and not (array and text[at] == "]"):
        line = text.count("\n", 0, at) + 1
        try:
            value, at = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if not whole and _may_be_cut(error, text):
                return
            raise _not_json(error, error.lineno if isinstance(error, json.JSONDecodeError) else line) from None
        yield line, value
        at = _next_value(text, at, line) if array else _after_blanks(text, at)
    if array and whole and at == len(text):
        raise _BadRowError(text.count("\n") + 1, "the array does not end.")


def _may_be_cut(error: Exception, text: str) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - _CUT_CHARACTERS


def _next_value(text: str, at: int, line: int) -> int:
    """Past the comma. A closing bracket, or the end, is for the caller."""
    at = _after_blanks(text, at)
    if at < len(text) and text[at] not in ",]":
        raise _BadRowError(line, "no comma between this element of the array and the next.")
    return _after_blanks(text, at + text.startswith(",", at))


def _after_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _csv_rows(head: bytes, whole: bool) -> Rows:
    """The rows under the header, as many cells each."""
    csv.field_size_limit(max(csv.field_size_limit(), LOOKED_AT_BYTES))
    reader = csv.reader(_text_lines(head, whole), strict=True)
    try:
        cells = (row for row in reader if row)
        header = _header(next(cells, None), reader.line_num)
        for row in cells:
            if len(row) != len(header):
                raise _BadRowError(reader.line_num, f"{len(row)} cells under a header of {len(header)}.")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        if whole or "unexpected end" not in str(error):  # a cell that the head's end cuts
            raise _BadRowError(reader.line_num, f"not CSV ({error}).") from None


def _header(cells: list[str] | None, line: int) -> list[str]:
    names = [name.strip() for name in cells or []]
    given = [name for name in names if name]
    if cells is not None and not given:
        raise _BadRowError(line, "the header names no column.")
    if len(set(given)) < len(given):
        raise _BadRowError(line, "the header names a column twice.")
    return names


def _text_lines(head: bytes, whole: bool, *, torn_end: bool = False) -> Iterator[str]:
    """Lines as text, without a last one that is cut; with `torn_end` only the character it is cut in is left out."""
    for number, line in enumerate(io.BytesIO(head), 1):
        if torn_end and not line.endswith(b"\n"):
            line = _whole_characters(line)
        if whole or line.endswith(b"\n"):
            yield _decoded(line, number)


def _whole_characters(line: bytes) -> bytes:
    """Without the first bytes of a character at its end."""
    start = max(line.rfind(byte) for byte in range(0xC0, 0xF8))
    return line[:start] if 0 <= len(line) - start < 4 else line


def _parquet(file: IO[bytes]) -> bool:
    with pq.ParquetFile(file) as parquet:
        return bool(parquet.metadata.num_rows and parquet.metadata.num_columns)


def _arrow(file: IO[bytes]) -> bool:
    """A stream, which is what `datasets` saves, or a file: a stream between a magic word and an index."""
    file.seek(8 if file.read(6) == b"ARROW1" else 0)
    with pa.ipc.open_stream(file) as stream:
        return bool(stream.schema.names)


_TABLES: dict[str, Callable[[IO[bytes]], bool]] = {"parquet": _parquet, "arrow": _arrow}
_READERS: dict[str, Callable[[bytes, bool], Rows]] = {
    "jsonl": _lines, "ndjson": _lines, "json": _values, "csv": _csv_rows
}  # fmt: skip
