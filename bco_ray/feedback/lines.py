"""Raw rows of log files as a Ray Data source: bounded memory, one bad byte costs one row, never a file.

A plain JSONL file is cut into byte ranges, a line belongs to the range its first byte is in. Compressed files and
Parquet cannot be cut and are one task each. Rows leave as bytes; parsing is a later stage's business.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from bco_ray.errors import DataError
from bco_ray.feedback.sources import SourceFile
from bco_ray.schema import LINES, row_to_fields, schema_name

RANGE_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20

Row = tuple[int, bytes]
"""Position (byte offset in a plain file, row number otherwise) and the raw JSON."""


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
        if file.path.endswith((".gz", ".parquet")):
            cut.append(Range(file))
        else:
            cut += [Range(file, a, min(file.bytes, a + range_bytes)) for a in range(0, file.bytes, range_bytes)]
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
    """The rows of a range as tables of about `block_bytes`. Raises DataError if it cannot be read on."""
    rows: list[Row] = []
    size = 0
    for position, raw in rows_of(part):
        rows.append((position, raw))
        size += len(raw)
        if size >= block_bytes:
            yield _table(part.file.path, rows)
            rows, size = [], 0
    yield _table(part.file.path, rows)


def rows_of(part: Range) -> Iterator[Row]:
    """Non-blank rows of one range, in file order."""
    path = part.file.path
    try:
        if path.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif path.endswith(".gz"):
            with gzip.open(path) as file:
                yield from enumerate(line for line in _lines(file) if line.strip())
        else:
            with open(path, "rb") as file:  # noqa: PTH123 - a plain path from the driver
                yield from _range_rows(file, part.start, part.end or part.file.bytes)
    except (EOFError, OSError, zlib.error, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read to its end ({error}). Repair or remove the file.") from None


def _range_rows(file: BinaryIO, start: int, end: int) -> Iterator[Row]:
    if start:
        file.seek(start - 1)
        _skip_line(file)
    while (position := file.tell()) < end:
        line = _read_line(file)
        if not line:
            return
        if line.strip():
            yield position, line.rstrip(b"\r\n")


def _lines(file: io.BufferedIOBase | BinaryIO) -> Iterator[bytes]:
    while line := _read_line(file):
        yield line.rstrip(b"\r\n") or b" "


def _read_line(file: Any) -> bytes:
    """One line, at most MAX_LINE_BYTES of it: the rest of a longer one is passed over (the row will not parse)."""
    line: bytes = file.readline(MAX_LINE_BYTES)
    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        _skip_line(file)
    return line


def _skip_line(file: Any) -> None:
    while (piece := file.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
        pass


def _parquet_rows(path: str) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        ours = schema_name(file.schema_arrow) == "records/1"
        position = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                fields = row_to_fields(row) if ours else row
                yield position, json.dumps(fields, default=str, ensure_ascii=False).encode()
                position += 1


def _table(path: str, rows: list[Row]) -> pa.Table:
    positions = [position for position, _ in rows]
    raws = [raw for _, raw in rows]
    return pa.table([[path] * len(rows), positions, raws], schema=LINES)
