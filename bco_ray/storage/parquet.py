"""Parquet tables at any place of a storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bco_ray.storage.objects import ObjectPath


def read_table(path: Path, **how: Any) -> pa.Table:
    """`pyarrow.parquet.read_table`; of an object only the columns that are asked for are fetched.

    Raises FileNotFoundError, OSError, and pyarrow.ArrowInvalid if it is no Parquet.
    """
    if not isinstance(path, ObjectPath):
        return pq.read_table(path, **how)
    with path.open_raw() as file:
        return pq.read_table(pa.PythonFile(file, mode="r"), **how)


def read_metadata(path: Path) -> pq.FileMetaData:
    """Of a file's footer."""
    with opened(path) as file:
        return file.metadata


def read_schema(path: Path) -> pa.Schema:
    """Of a file's footer, metadata included."""
    with opened(path) as file:
        return file.schema_arrow


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """To be read in parts."""
    if not isinstance(path, ObjectPath):
        with pq.ParquetFile(path) as file:
            yield file
        return
    with path.open_raw() as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as file:
        yield file
