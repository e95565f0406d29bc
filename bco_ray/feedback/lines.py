"""Raw rows of log files as a Ray Data source: bounded memory, one bad byte costs one row, never a file.

A plain JSONL file is cut into byte ranges, a line belongs to the range its first byte is in. All other files are one
task each. Rows leave as JSON bytes; parsing is a later stage's business. Nothing a file holds raises: what cannot be
read leaves as a row with a problem, what comes after a torn end as one such row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
from backports import zstd
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from bco_ray.feedback.column_rows import arrow_rows, parquet_rows
from bco_ray.feedback.csv_rows import csv_rows
from bco_ray.feedback.json_rows import json_rows
from bco_ray.feedback.raw import BrokenOff, RawRow
from bco_ray.feedback.sources import SourceFile
from bco_ray.feedback.text_rows import line_rows, numbered
from bco_ray.schema import LINES
from bco_ray.storage import locations

RANGE_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
_LOOKED_AT = 1000

_TORN = (
    BrokenOff, EOFError, OSError, MemoryError, zlib.error, zstd.ZstdError, pa.ArrowException, csv.Error, ValueError
)  # fmt: skip
"""What readers raise over a file's content (MemoryError: a damaged length, 2**60 bytes say). A failing disk or network
is DataError by then (storage.locations)."""


@dataclass(frozen=True)
class Range:
    """Bytes [start, end) of a file; `end` None reads the file as a whole."""

    file: SourceFile
    start: int = 0
    end: int | None = None


def ranges(files: Iterable[SourceFile], *, range_bytes: int = RANGE_BYTES) -> list[Range]:
    """The units of reading, in file order then offset order."""
    cut: list[Range] = []
    for file in files:
        if file.kind == "jsonl" and not file.compression:
            cut += [Range(file, a, min(file.bytes, a + range_bytes)) for a in range(0, file.bytes, range_bytes)]
        else:
            cut.append(Range(file))
    return cut


class LineSource(Datasource):  # type: ignore[misc]
    """One read task per range; blocks follow `schema.LINES`."""

    def __init__(self, files: list[SourceFile], *, range_bytes: int = RANGE_BYTES) -> None:
        super().__init__()
        self._ranges = ranges(files, range_bytes=range_bytes)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes on disk; Ray sizes its read by it."""
        return sum((r.end or r.file.bytes) - r.start for r in self._ranges)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Ray's hook; the number of tasks is the number of ranges, whatever `parallelism` says."""
        return [
            ReadTask(lambda r=r: blocks(r), _metadata(r), per_task_row_limit=per_task_row_limit) for r in self._ranges
        ]


def _metadata(part: Range) -> BlockMetadata:
    size = (part.end or part.file.bytes) - part.start
    return BlockMetadata(num_rows=None, size_bytes=size, input_files=[part.file.path], exec_stats=None)


def blocks(part: Range, *, block_bytes: int = BLOCK_BYTES) -> Iterator[pa.Table]:
    """The rows of a range as tables of about `block_bytes`. Raises DataError if the file cannot be got at."""
    rows: list[RawRow] = []
    size = 0
    for row in rows_of(part):
        rows.append(row)
        size += len(row.raw)
        if size >= block_bytes:
            yield as_table(part.file.path, rows)
            rows, size = [], 0
    yield as_table(part.file.path, rows)


def rows_of(part: Range) -> Generator[RawRow]:
    """Non-blank rows of one range, in file order; a last one with a problem if the rest cannot be read."""
    following = part.start
    with locations.open_raw(part.file.path) as file:
        try:
            for row in _reader(part, file):
                following = row.position + 1
                yield row
        except _TORN as error:
            yield RawRow(following, b"", f"unreadable_rest: {str(error) or type(error).__name__}")


def _reader(part: Range, file: io.RawIOBase) -> Iterator[RawRow]:
    kind = part.file.kind
    if kind == "parquet":
        return parquet_rows(file)
    opened = _unpacked(file, part.file.compression)
    if kind == "arrow":
        return arrow_rows(opened)
    if kind == "jsonl":
        rows = line_rows(opened, part.start, part.end)
        return numbered(rows) if part.file.compression else rows
    return csv_rows(opened) if kind == "csv" else json_rows(opened)


def _unpacked(file: io.RawIOBase, compression: str) -> Any:
    buffered = io.BufferedReader(file, locations.BUFFER_BYTES)
    if compression == "gz":
        return gzip.GzipFile(fileobj=buffered)
    return zstd.ZstdFile(buffered) if compression == "zst" else buffered


def first_rows(file: SourceFile, count: int = 20) -> list[dict[str, Any]]:
    """Up to `count` JSON objects from the head of a file, broken rows passed over: what its format is told by."""
    decoded = (_object(row) for row in islice(rows_of(Range(file)), _LOOKED_AT))
    return list(islice((row for row in decoded if row is not None), count))


def _object(row: RawRow) -> dict[str, Any] | None:
    try:
        value = json.loads(row.raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_table(path: str, rows: Sequence[RawRow]) -> pa.Table:
    """A block of one file's rows (schema.LINES)."""
    columns = [[path] * len(rows), *([row[field] for row in rows] for field in range(3))]
    return pa.table(columns, schema=LINES)
