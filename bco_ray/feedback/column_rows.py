"""Rows of Parquet and Arrow files as JSON, a few batches in memory at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bco_ray.feedback.raw import RawRow, to_json
from bco_ray.schema import is_records, row_to_fields

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024
_PAGE_BUFFER_BYTES = 1 << 20


def parquet_rows(file: io.RawIOBase) -> Iterator[RawRow]:
    """Rows of a Parquet file. Raises what pyarrow raises where it cannot go on."""
    with pq.ParquetFile(file, buffer_size=_PAGE_BUFFER_BYTES) as parquet:
        meta = parquet.metadata
        size = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
        ours = is_records(parquet.schema_arrow)
        yield from _numbered(parquet.iter_batches(batch_size=_rows_per_batch(size, meta.num_rows)), ours)


def arrow_rows(file: io.BufferedReader) -> Iterator[RawRow]:
    """Rows of an Arrow stream, which is what `datasets` saves, or of an Arrow file."""
    magic = file.read(6)
    file.seek(8 if magic == b"ARROW1" else 0)  # an Arrow file is a stream between a magic word and an index
    with pa.ipc.open_stream(file) as stream:
        ours = is_records(stream.schema)
        yield from _numbered((piece for batch in stream for piece in _pieces(batch)), ours)


def _rows_per_batch(size_bytes: int, rows: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size_bytes)))


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    # not nbytes: it follows offsets, which nobody has checked yet
    step = _rows_per_batch(batch.get_total_buffer_size(), batch.num_rows)
    return (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def _numbered(batches: Iterator[pa.RecordBatch], ours: bool) -> Iterator[RawRow]:
    start = 0
    for batch in batches:
        yield from _rows(batch, ours, start)
        start += batch.num_rows


def _rows(batch: pa.RecordBatch, ours: bool, start: int) -> Iterator[RawRow]:
    try:
        rows = _decoded(batch)
    except (ValueError, OverflowError, TypeError):  # text that is not UTF-8, a time beyond all calendars
        for number in range(batch.num_rows):
            yield _one_row(batch.slice(number, 1), ours, start + number)
        return
    for number, row in enumerate(rows, start):
        yield _as_json(row, ours, number)


def _one_row(batch: pa.RecordBatch, ours: bool, number: int) -> RawRow:
    try:
        return _as_json(_decoded(batch)[0], ours, number)
    except (ValueError, OverflowError, TypeError) as error:
        return _refused(number, error)


def _decoded(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    batch.validate(full=True)  # offsets that point outside would be read all the same
    rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="lossy")
    return rows


def _as_json(row: dict[str, Any], ours: bool, number: int) -> RawRow:
    try:
        return RawRow(number, to_json(row_to_fields(row) if ours else row))
    except (ValueError, TypeError, RecursionError) as error:
        return _refused(number, error)


def _refused(number: int, error: Exception) -> RawRow:
    return RawRow(number, b"", f"unreadable_row: {type(error).__name__}: {error}")
