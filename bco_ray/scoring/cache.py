"""What the reference model said before, by content: log-probabilities of token rows, embeddings of prompts.

A cache is a directory of small Parquet files, each named by the range of prompt hashes it holds
(`<lowest>-<highest>-<digest>.parquet`), written once and never changed. A lookup opens only the files whose range
meets that of the part at hand, one at a time, so memory does not grow with the cache. Files hold hashes and numbers
and nothing of a vote or a person; an embedding says something about its prompt, and `forget` removes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bco_ray.errors import StorageError
from bco_ray.scoring.shards import write_table
from bco_ray.scoring.tokens import KEY_BYTES
from bco_ray.storage import parquet

CACHED = pa.schema(
    [("key", pa.binary(KEY_BYTES)), ("values", pa.list_(pa.float32()))], metadata={"bco_ray": "cached/1"}
)
"""Keys are distinct within a file; all values of a cache have one width."""

Values = dict[bytes, np.ndarray]
"""Content key -> float32 numbers (W,)."""

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-[0-9a-f]{12}\.parquet")


@dataclass(frozen=True)
class Span:
    """A range of prompt hashes, as 16 hex digits that sort like the (unsigned) hashes."""

    low: str
    high: str

    @classmethod
    def of(cls, prompt_hash_N: np.ndarray) -> Span:
        """From the signed hashes of some rows (at least one)."""
        return cls(*(f"{int(end) + 2**63:016x}" for end in (prompt_hash_N.min(), prompt_hash_N.max())))

    def meets(self, name: str) -> bool:
        """Whether a cache file of that name can hold one of these."""
        found = _NAME.fullmatch(name)
        return found is not None and found[1] <= self.high and self.low <= found[2]


@dataclass(frozen=True)
class ContentCache:
    """One kind of values, in one directory that may not exist yet."""

    directory: Path

    def find(self, span: Span, keys: set[bytes]) -> Values:
        """The values of those `keys` that are known. Of several the first counts: they differ by rounding."""
        found: Values = {}
        for path in self._files(span):
            wanted = pa.array(keys - found.keys(), pa.binary(KEY_BYTES))
            found |= _values(_read(path, wanted))
            if len(found) == len(keys):
                break
        return found

    def add(self, span: Span, values: Mapping[bytes, np.ndarray]) -> None:
        """Remember `values`; those that are no finite numbers are left out, to be tried again."""
        kept = {key: value for key, value in sorted(values.items()) if np.isfinite(value).all()}
        if not kept:
            return
        digest = hashlib.sha256(b"".join(kept)).hexdigest()[:12]
        path = self.directory / f"{span.low}-{span.high}-{digest}.parquet"
        if not path.is_file():
            write_table(path, pa.table([list(kept), list(kept.values())], schema=CACHED))

    def forget(self, span: Span, keys: set[bytes]) -> int:
        """Remove `keys`, for an erasure; how many entries went. Files that held one are replaced or deleted."""
        unwanted, gone = pa.array(keys, pa.binary(KEY_BYTES)), 0
        for path in self._files(span):
            table = parquet.read_table(path)
            rest = table.filter(pc.invert(pc.is_in(table["key"], value_set=unwanted)))
            gone += table.num_rows - rest.num_rows
            if not rest.num_rows:
                path.unlink()
            elif rest.num_rows < table.num_rows:
                write_table(path, rest)
        return gone

    def _files(self, span: Span) -> Iterator[Path]:
        """In name order."""
        if self.directory.is_dir():
            yield from sorted(path for path in self.directory.iterdir() if span.meets(path.name))


def _read(path: Path, wanted: pa.Array) -> pa.Table:
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise StorageError(f"{path}: damaged ({error}). Delete it: what it held is computed again.") from None
    return table.filter(pc.is_in(table["key"], value_set=wanted))


def _values(table: pa.Table) -> Values:
    if not table.num_rows:
        return {}
    values_NW = np.asarray(table["values"].combine_chunks().flatten()).reshape(table.num_rows, -1)
    return dict(zip(table["key"].to_pylist(), values_NW, strict=True))
