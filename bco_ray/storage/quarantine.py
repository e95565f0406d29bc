"""Refused rows on disk, and the books: every batch of a stage leaves one file saying how many rows it read and refused.

A batch's file is named by its first row, so a retried task overwrites its own file and nothing is counted twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.schema import QUARANTINE, schema_name
from bco_ray.storage import files, parquet

_READ = b"rows_read"
_NOTES = b"notes"


@dataclass(frozen=True)
class Tally:
    """What a stage did: `read` rows came in, `drops` counts the refused ones by reason, `notes` anything else."""

    read: int
    drops: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows passed on."""
        return self.read - sum(self.drops.values())

    def without(self, note: str) -> Tally:
        """The same, as if the rows counted under `note` had not been there."""
        return Tally(self.read - self.notes.get(note, 0), self.drops, self.notes)


class Quarantine:
    """The refused rows of one stage, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(
        self, first: tuple[str, int], read: int, refused: list[dict[str, Any]], notes: Mapping[str, int] | None = None
    ) -> None:
        """Account for one batch, named by `first`: (file, position) of its first row, or the bucket it is.

        `refused` fit `schema.QUARANTINE`; `notes` are counts that are summed in the tally.
        """
        books = {_READ: str(read).encode(), _NOTES: json.dumps(dict(notes or {})).encode()}
        schema = QUARANTINE.with_metadata({**(QUARANTINE.metadata or {}), **books})
        table = pa.Table.from_pylist(refused, schema=schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        name = hashlib.sha256(f"{first[0]}\0{first[1]}".encode()).hexdigest()[:24]
        files.write_bytes(self.directory / f"{name}.parquet", sink.getvalue().to_pybytes())

    def tally(self) -> Tally:
        """Sum the books, one file at a time."""
        read, drops, notes = 0, Counter[str](), Counter[str]()
        for path in self._files():
            books = parquet.read_schema(path).metadata or {}
            read += int(books[_READ])
            notes.update(json.loads(books.get(_NOTES, b"{}")))
            counts = pc.value_counts(parquet.read_table(path, columns=["reason"])["reason"]).to_pylist()
            drops.update({c["values"]: c["counts"] for c in counts})
        return Tally(read, dict(sorted(drops.items())), dict(notes))

    def examples_by_reason(self, count: int, drops: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
        """Up to `count` refused rows of each reason in `drops`, the first ones found; nothing beyond is read."""
        found: dict[str, list[dict[str, Any]]] = {}
        wanted = {reason: min(count, dropped) for reason, dropped in drops.items()}
        for path in self._files():
            if not any(wanted.values()):
                break
            for number, reason in enumerate(parquet.read_table(path, columns=["reason"])["reason"].to_pylist()):
                if wanted.get(reason, 0):
                    wanted[reason] -= 1
                    found.setdefault(reason, []).extend(parquet.read_table(path).slice(number, 1).to_pylist())
        return dict(sorted(found.items()))

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Up to `count` refused rows, in no particular order."""
        rows: list[dict[str, Any]] = []
        for path in self._files():
            rows += parquet.read_table(path).slice(0, count - len(rows)).to_pylist()
            if len(rows) >= count:
                break
        return rows

    def _files(self) -> Iterable[Path]:
        return sorted(self.directory.glob("*.parquet"))


@dataclass(frozen=True)
class Refused:
    """A refused row (`schema.QUARANTINE`). `id`: its place, `<stage>/<file>:<row>`, in the order of a listing."""

    id: str
    row: dict[str, Any]

    @property
    def stage(self) -> str:
        """That refused it."""
        return self.id.partition("/")[0]


def refused_rows(
    roots: Iterable[Path], *, reason: str | None = None, after: tuple[str, int] = ("", -1), limit: int = 100
) -> tuple[list[Refused], bool]:
    """Up to `limit` rows of all stages below these, and whether there are more. `after`: `<stage>/<file>` and row."""
    found = list[Refused]()
    paths = {f"{path.parent.name}/{path.stem}": path for root in roots for path in root.glob("*/*.parquet")}
    for name, path in sorted(paths.items()):
        if name < after[0]:
            continue
        reasons = parquet.read_table(path, columns=["reason"])["reason"].to_pylist()
        first = after[1] + 1 if name == after[0] else 0
        numbers = [n for n, one in enumerate(reasons) if n >= first and reason in (None, one)]
        wanted = numbers[: limit + 1 - len(found)]
        rows = parquet.read_table(path).take(wanted).to_pylist() if wanted else []
        found += [Refused(f"{name}:{number}", row) for number, row in zip(wanted, rows, strict=True)]
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


def blank_mentions(root: Path, mentions: Callable[[bytes], bool], begin: Callable[[], None]) -> int:
    """Empty the refused rows below `root` whose text names somebody who is to be forgotten; returns how many.

    They still count. `begin` is called before the first file changes; a file's own books stay as they are.
    """
    blanked = 0
    for path in sorted(root.rglob("*.parquet")):
        if (schema_name(parquet.read_schema(path)) or "").startswith("quarantine/"):
            blanked += _blank(path, mentions, begin)
    return blanked


def _blank(path: Path, mentions: Callable[[bytes], bool], begin: Callable[[], None]) -> int:
    table = parquet.read_table(path)
    rows = table.to_pylist()
    named = [row for row in rows if mentions(row["raw"] or b"") or mentions((row["detail"] or "").encode())]
    for row in named:
        row |= {"raw": b"", "detail": "erased"}
    if named:
        begin()
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
        files.write_bytes(path, sink.getvalue().to_pybytes())
    return len(named)
