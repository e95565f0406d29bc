"""Scored shards on disk: `scored/<hash>/part-*.parquet` (schema.SCORED) and the manifest that makes them count."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from bco_ray.errors import StorageError
from bco_ray.schema import SCORED
from bco_ray.storage import files, parquet

TOMBSTONE: dict[str, Any] = {
    "id": None, "user": None, "weight": 0.0, "n_tokens": 2, "input_ids": [0, 0], "completion_mask": [False, True],
    "reference_logp": 0.0,
}  # fmt: skip
"""What is left of an erased row, beside its place, label and split: a row that can be computed and counts nothing."""


class ShardFacts(BaseModel):
    """One shard: rows per split and label, and tokens; enough to plan every training step without reading it.

    `train_pairs`: how many pairs of an up and a down on the same prompt its train rows make (`pair_places`).
    """

    model_config = ConfigDict(extra="forbid")

    file: str
    train_chosen: int
    train_rejected: int
    validation_chosen: int
    validation_rejected: int
    train_tokens: int
    train_pairs: int = 0

    @property
    def rows(self) -> int:
        """All rows of the shard."""
        return self.train_chosen + self.train_rejected + self.validation_chosen + self.validation_rejected


class ScoredManifest(BaseModel):
    """What one scoring run made. `read = kept + sum(drops)` from the log's votes on; `matching` is the density report,
    `lengths` that of length matching, `mixture` what the votes are (scoring.mixing_passes).

    `records` names the directory of settled records that went in. `computed_rows`: rows the reference model was run
    on for this, `cached_rows`: those it was not, because the same tokens were known.
    """

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, Any]
    records: str = ""
    read: int
    kept: int
    drops: dict[str, int]
    computed_rows: int = 0
    cached_rows: int = 0
    matching: dict[str, Any]
    lengths: dict[str, Any] = Field(default_factory=lambda: {"applied": False})
    mixture: dict[str, Any] = Field(default_factory=dict)
    shards: list[ShardFacts] = Field(default_factory=list)

    def count(self, field: str) -> int:
        """Sum of one of the shard counts."""
        return sum(int(getattr(shard, field)) for shard in self.shards)


def source_weights(directory: Path, manifest: ScoredManifest) -> dict[str | None, tuple[float, float]]:
    """Total weight of each source's train rows, (thumbs-up, thumbs-down); reads four small columns of every shard."""
    found: dict[str | None, tuple[float, float]] = {}
    for shard in manifest.shards:
        table = parquet.read_table(directory / shard.file, columns=["source", "split", "label", "weight"])
        train = table.filter(pc.equal(table["split"], "train")).select(["source", "label", "weight"])
        sums = train.group_by(["source", "label"], use_threads=False).aggregate([("weight", "sum")])
        for row in sums.to_pylist():
            up, down = found.get(row["source"], (0.0, 0.0))
            weight = row["weight_sum"]
            found[row["source"]] = (up + weight, down) if row["label"] else (up, down + weight)
    return found


def pair_places(chosen_hash: np.ndarray, rejected_hash: np.ndarray) -> np.ndarray:
    """(P, 2): the i-th up and the i-th down on each prompt, as places among the ups and among the downs.

    Takes the prompt hashes of both in file order; what is left over on one side is in no pair.
    """
    keys = [_nth_of_its_kind(hashes) for hashes in (chosen_hash, rejected_hash)]
    down_at = {key: place for place, key in enumerate(keys[1])}
    pairs = [(place, down_at[key]) for place, key in enumerate(keys[0]) if key in down_at]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _nth_of_its_kind(hashes: np.ndarray) -> list[tuple[int, int]]:
    seen: Counter[int] = Counter()
    keys = []
    for value in hashes.tolist():
        keys.append((value, seen[value]))
        seen[value] += 1
    return keys


def commit_scored(directory: Path, manifest: ScoredManifest, known: files.Facts | None = None) -> None:
    """Make the shards count: the manifest, with a digest of every shard, is written last. `known` ones are not read."""
    files.commit_directory(directory, {"scored": manifest.model_dump()}, known)


def load_scored(directory: Path) -> ScoredManifest:
    """The manifest of finished shards. Raises StorageError if scoring has not finished there."""
    found = files.read_json(directory / files.MANIFEST)
    if "scored" not in found:
        raise StorageError(f"{directory}: its manifest is not one of scored shards.")
    return ScoredManifest.model_validate(found["scored"])


def tombstone(directory: Path, matches: Callable[[pa.Table], pa.BooleanArray]) -> int:
    """Erase the rows that `matches` picks (given a table of SCORED) from finished shards; returns how many.

    An erased row becomes a TOMBSTONE in its old place, and the manifest's counts (also of tokens) stay, so the plans
    of runs in progress stay valid. A shard's new digest is in the manifest before the shard is replaced: after a crash
    between the two the rows are still there to match, and doing it again completes it. What the reference pass
    caches needs no such call: it holds hashes and numbers, nobody's name or words (scoring.cache).
    """
    erased = 0
    for shard in load_scored(directory).shards:
        path = directory / shard.file
        table = parquet.read_table(path)
        matched = matches(table)
        if count := int(pc.sum(matched).as_py() or 0):
            content = _encoded(_buried(table, matched))
            _announce(directory / files.MANIFEST, shard.file, content)
            files.write_bytes(path, content)
            erased += count
    return erased


def _buried(table: pa.Table, matched: pa.BooleanArray) -> pa.Table:
    for number, name in enumerate(SCORED.names):
        if name in TOMBSTONE:
            kind, old = SCORED.field(name).type, table[name].combine_chunks()
            grave = pa.array([TOMBSTONE[name]] * table.num_rows, kind)
            table = table.set_column(number, SCORED.field(name), pc.if_else(matched, grave, old))
    return table.cast(SCORED)


def _encoded(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _announce(manifest: Path, name: str, content: bytes) -> None:
    found = files.read_json(manifest)
    found["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files.write_json(manifest, found)
