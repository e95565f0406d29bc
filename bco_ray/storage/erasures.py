"""Who must not be learned from: `erasures.jsonl`, a ledger of erased people (as pseudonyms) and vote ids.

Append-only. It outlives what was erased, so that the same rows do not come back with the next reading of an old log.
Below it: how the files of a directory that counts already are written again without some rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.errors import StorageError
from bco_ray.storage import files, parquet

LEDGER = "erasures.jsonl"

Matches = Callable[[pa.Table], pa.Array]
"""Which rows of a table with the columns `id` and `user` are to go; never null."""

Mentions = Callable[[bytes], bool]
"""Whether some text as it was read names somebody who is to go."""


def erased_names(storage: Path) -> frozenset[str]:
    """Pseudonyms and vote ids. Raises StorageError for a damaged ledger: to ignore it would be to forget."""
    path = storage / LEDGER
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(str(json.loads(line)["name"]) for line in path.read_text().splitlines())
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: damaged ({error}); every line names somebody to leave out. Repair it.") from None


def remember_erasure(storage: Path, names: Iterable[str]) -> None:
    """Append to the ledger, durably; a name that is there already is not written twice."""
    with files.locked(storage / ".erasures.lock"):
        known = erased_names(storage)
        now = int(time.time())
        new = [{"name": name, "erased_at": now} for name in dict.fromkeys(names) if name not in known]
        path = storage / LEDGER
        before = path.read_bytes() if path.is_file() else b""
        files.write_bytes(path, before + b"".join(json.dumps(line).encode() + b"\n" for line in new))


@dataclass(frozen=True)
class Amendment:
    """A mark that files of a directory are being written again and its manifest does not say so yet.

    Set before the first file changes and removed after the manifest is right, so that whoever comes after a crash
    knows that the digests are to be taken anew; without the mark a wrong digest is damage, and stays visible.
    """

    directory: Path

    @property
    def mark(self) -> Path:
        """The file that is the mark."""
        return self.directory / ".erasing"

    @property
    def pending(self) -> bool:
        """Whether it is set, now or by somebody who did not come to the end."""
        return self.mark.is_file()

    def begin(self) -> None:
        """Set it, durably."""
        if not self.pending:
            files.write_bytes(self.mark, b"")

    def finish(self) -> None:
        """The manifest is right again."""
        self.mark.unlink(missing_ok=True)


def matching_rows(path: Path, matches: Matches) -> int:
    """How many rows of a Parquet file are to go; only its names are read."""
    return int(pc.sum(matches(parquet.read_table(path, columns=["id", "user"]))).as_py() or 0)


def drop_rows(path: Path, matches: Matches, amendment: Amendment) -> int:
    """Write a Parquet file again without the rows that match; returns how many those were."""
    found = matching_rows(path, matches)
    if found:
        amendment.begin()
        rows = parquet.read_table(path)
        write_rows(path, rows.filter(pc.invert(matches(rows))))
    return found


def write_rows(path: Path, rows: pa.Table) -> None:
    """Atomically, with the schema's metadata."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    files.write_bytes(path, sink.getvalue().to_pybytes())


def renew_manifest(directory: Path, changes: Mapping[str, Any]) -> None:
    """`changes` and the digests of the files as they are now into a committed directory's manifest."""
    manifest = files.read_json(directory / files.MANIFEST)
    listed = {name: directory / name for name in manifest["files"] if (directory / name).is_file()}
    facts = {name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)} for name, path in listed.items()}
    files.write_json(directory / files.MANIFEST, {**manifest, **changes, "files": facts})
