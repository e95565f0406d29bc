"""The stages at the end of the reference pass (shards with embeddings) and of scoring (shards with weights)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.schema import REFERENCE, SCORED
from bco_ray.scoring.matching import Matching, embeddings
from bco_ray.storage import files
from bco_ray.storage.scored import ShardFacts

SHARD_FACTS = pa.schema([("file", pa.string())] + [(n, pa.int64()) for n in ShardFacts.model_fields if n != "file"])


@dataclass(frozen=True)
class ShardWriter:
    """Writes each block as one Parquet file and passes on its facts: what reaches the driver is one row per shard.

    The name comes from the block's first row, so a retried task overwrites its own file; sorting the names gives the
    order of the log.
    """

    directory: Path
    file_order: tuple[str, ...]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One block in (REFERENCE), one row out: its `ShardFacts` (none for an empty block)."""
        if not rows.num_rows:
            return pa.Table.from_pylist([], schema=SHARD_FACTS)
        order = self.file_order.index(rows["file"][0].as_py())
        name = f"part-{order:05d}-{rows['position'][0].as_py():014d}.parquet"
        write_table(self.directory / name, rows.cast(REFERENCE))
        return pa.Table.from_pylist([shard_facts(name, rows).model_dump()], schema=SHARD_FACTS)


@dataclass(frozen=True)
class WeightStage:
    """Turns reference shards into scored ones: weight times density ratio for thumbs-down rows, embedding dropped."""

    source: Path
    target: Path
    matching: Matching | None
    ratio_mean: float

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """One shard; `item` names it and is returned."""
        rows = pq.read_table(self.source / item["file"])
        weight_N = rows["weight"].to_numpy().astype(np.float64)
        if self.matching is not None:
            rejected_N = ~rows["label"].to_numpy()
            ratio_N = self.matching.clamped_ratio(embeddings(rows), rows["prompt_hash"].to_numpy())
            weight_N = np.where(rejected_N, weight_N * ratio_N / self.ratio_mean, weight_N)
        column = pa.array(weight_N.astype(np.float32))
        scored = rows.drop_columns(["embedding"]).set_column(rows.schema.get_field_index("weight"), "weight", column)
        write_table(self.target / item["file"], scored.cast(SCORED))
        return item


def shard_facts(name: str, rows: pa.Table) -> ShardFacts:
    """Counts of one shard."""
    train = pc.equal(rows["split"], "train")
    label = rows["label"]

    def count(mask: Any) -> int:
        return int(pc.sum(mask).as_py() or 0)

    return ShardFacts(
        file=name,
        train_chosen=count(pc.and_(train, label)),
        train_rejected=count(pc.and_(train, pc.invert(label))),
        validation_chosen=count(pc.and_(pc.invert(train), label)),
        validation_rejected=count(pc.and_(pc.invert(train), pc.invert(label))),
        train_tokens=int(pc.sum(rows["n_tokens"].filter(train)).as_py() or 0),
    )


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet, atomically; the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    files.write_bytes(path, sink.getvalue().to_pybytes())
