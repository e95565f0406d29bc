"""Refused rows on disk, and the books: every batch of a stage leaves one file saying how many rows it read and refused.

A batch's file is named by its first row, so a retried task overwrites its own file and nothing is counted twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.schema import QUARANTINE
from bco_ray.storage import files

_READ = b"rows_read"


@dataclass(frozen=True)
class Tally:
    """What a stage did: `read` rows came in, `drops` counts the refused ones by reason."""

    read: int
    drops: dict[str, int]

    @property
    def kept(self) -> int:
        """Rows passed on."""
        return self.read - sum(self.drops.values())


class Quarantine:
    """The refused rows of one stage, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, first: tuple[str, int], read: int, refused: list[dict[str, Any]]) -> None:
        """Account for one batch: `first` is (file, position) of its first row; `refused` fit `schema.QUARANTINE`."""
        schema = QUARANTINE.with_metadata({**(QUARANTINE.metadata or {}), _READ: str(read).encode()})
        table = pa.Table.from_pylist(refused, schema=schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        name = hashlib.sha256(f"{first[0]}\0{first[1]}".encode()).hexdigest()[:24]
        files.write_bytes(self.directory / f"{name}.parquet", sink.getvalue().to_pybytes())

    def tally(self) -> Tally:
        """Sum the books, one file at a time."""
        read, drops = 0, Counter[str]()
        for path in self._files():
            read += int((pq.read_schema(path).metadata or {})[_READ])
            counts = pc.value_counts(pq.read_table(path, columns=["reason"])["reason"]).to_pylist()
            drops.update({c["values"]: c["counts"] for c in counts})
        return Tally(read, dict(sorted(drops.items())))

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Up to `count` refused rows, in no particular order."""
        rows: list[dict[str, Any]] = []
        for path in self._files():
            rows += pq.read_table(path).slice(0, count - len(rows)).to_pylist()
            if len(rows) >= count:
                break
        return rows

    def _files(self) -> Iterable[Path]:
        return sorted(self.directory.glob("*.parquet"))
