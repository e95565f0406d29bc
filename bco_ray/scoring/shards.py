"""What shards are made of: their facts, the distinct prompts beside them, and the weights that finish them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.objective.lengths import LengthMatching
from bco_ray.schema import PROMPTS, SCORED
from bco_ray.scoring.matching import Matching
from bco_ray.scoring.matching_prompts import embedding_column, embeddings
from bco_ray.storage import files, parquet
from bco_ray.storage.ragged import Ragged
from bco_ray.storage.scored import ShardFacts, pair_places


def prompts_name(shard: str) -> str:
    """`prompts-00003-0000.parquet` beside `part-00003-0000.parquet`."""
    return "prompts-" + shard.removeprefix("part-")


def distinct_prompts(rows: pa.Table, embedding_PD: np.ndarray) -> pa.Table:
    """PROMPTS of REFERENCE rows; `embedding_PD` has one row per distinct prompt hash, in ascending order."""
    hash_N, label_N = rows["prompt_hash"].to_numpy(), rows["label"].to_numpy(zero_copy_only=False)
    hash_P, first_P, prompt_N = np.unique(hash_N, return_index=True, return_inverse=True)
    columns = [
        pa.array(hash_P),
        rows["split"].combine_chunks().take(pa.array(first_P)),
        pa.array(np.bincount(prompt_N[label_N], minlength=len(hash_P)), pa.int32()),
        pa.array(np.bincount(prompt_N[~label_N], minlength=len(hash_P)), pa.int32()),
        embedding_column(embedding_PD),
    ]
    return pa.table(columns, schema=PROMPTS)


@dataclass(frozen=True)
class WeightStage:
    """Turns a reference shard into a scored one: its rows' weights times what matching says of prompts, of lengths."""

    source: Path
    target: Path
    matching: Matching | None
    lengths: LengthMatching | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """One shard; `item` names it and is returned with what a manifest says of it."""
        rows = parquet.read_table(self.source / item["file"])
        weight_N = matched_weights(self.source / item["file"], rows, self.matching)
        if self.lengths is not None:
            weight_N *= self.lengths.weights(completion_lengths(rows), rows["label"].to_numpy(zero_copy_only=False))
        column = pa.array(weight_N.astype(np.float32))
        scored = rows.set_column(rows.schema.get_field_index("weight"), "weight", column)
        return {**item, **write_table(self.target / item["file"], scored.cast(SCORED))}


def matched_weights(shard: Path, rows: pa.Table, matching: Matching | None) -> np.ndarray:
    """Weights (N,) of a reference shard's rows, times what `matching` says of their prompts, which lie beside it."""
    weight_N: np.ndarray = rows["weight"].to_numpy().astype(np.float64)
    if matching is not None and len(weight_N):
        path = shard.with_name(prompts_name(shard.name))
        prompts = parquet.read_table(path, columns=["prompt_hash", "embedding"])
        hash_N = rows["prompt_hash"].to_numpy()
        embedding_ND = embeddings(prompts, path)[np.searchsorted(prompts["prompt_hash"].to_numpy(), hash_N)]
        weight_N *= matching.weights(embedding_ND, hash_N, rows["label"].to_numpy(zero_copy_only=False))
    return weight_N


def completion_lengths(rows: pa.Table) -> np.ndarray:
    """Tokens of each row's completion, (N,)."""
    return Ragged(rows["completion_mask"]).sums


def shard_facts(name: str, rows: pa.Table) -> ShardFacts:
    """Counts of one shard."""
    train = pc.equal(rows["split"], "train")
    label = rows["label"]

    def count(mask: Any) -> int:
        return int(pc.sum(mask).as_py() or 0)

    def hashes(mask: Any) -> np.ndarray:
        found: np.ndarray = rows["prompt_hash"].filter(pc.and_(train, mask)).to_numpy()
        return found

    return ShardFacts(
        file=name,
        train_chosen=count(pc.and_(train, label)),
        train_rejected=count(pc.and_(train, pc.invert(label))),
        validation_chosen=count(pc.and_(pc.invert(train), label)),
        validation_rejected=count(pc.and_(pc.invert(train), pc.invert(label))),
        train_tokens=int(pc.sum(rows["n_tokens"].filter(train)).as_py() or 0),
        train_pairs=len(pair_places(hashes(label), hashes(pc.invert(label)))),
    )


def write_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Parquet, atomically; the same rows give the same bytes. Embeddings (of PROMPTS) stay as they are. Returns what a
    manifest says of the file.
    """
    sink = pa.BufferOutputStream()
    small = [name for name in table.column_names if name != "embedding"]
    how: dict[str, Any] = {"compression": "zstd"}
    if len(small) < table.num_columns:
        compression = dict.fromkeys(small, "zstd") | {"embedding": "none"}
        how = {"compression": compression, "use_dictionary": small, "write_statistics": small}
    pq.write_table(table.combine_chunks(), sink, **how)
    content = sink.getvalue().to_pybytes()
    files.write_bytes(path, content)
    return files.facts_of(content)
