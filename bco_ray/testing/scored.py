"""Scored shards without a scoring run: random rows with the reference's real log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import lay_out
from bco_ray.models.policy import Policy
from bco_ray.schema import SCORED
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored, pair_places

Row = dict[str, Any]


def write_scored(
    directory: Path, model: Path, *, chosen: int, rejected: int, shards: int = 2, seed: int = 0
) -> ScoredManifest:
    """`chosen` + `rejected` train rows dealt to `shards`. Thumbs-down rows are longer, so classes clump by length."""
    random = np.random.default_rng(seed)
    labels = random.permutation([True] * chosen + [False] * rejected)
    policy = Policy(load_frozen(model, dtype=torch.float32))
    vocabulary = policy.lm.config.vocab_size
    rows: list[Row] = [_row(i, bool(label), vocabulary, random, policy) for i, label in enumerate(labels)]
    facts = [_write_shard(directory, number, rows[number::shards]) for number in range(shards)]
    manifest = ScoredManifest(inputs={}, read=len(rows), kept=len(rows), drops={}, matching={}, shards=facts)
    commit_scored(directory, manifest)
    return manifest


def _row(index: int, label: bool, vocabulary: int, random: np.random.Generator, policy: Policy) -> Row:
    length = int(random.integers(6, 14) if label else random.integers(10, 24))
    ids = random.integers(3, vocabulary, length)
    mask = np.arange(length) >= int(random.integers(1, 5))
    with torch.no_grad():
        logp = float(policy(lay_out([ids], [mask]))[0])
    return {
        "file": "made", "position": index, "entry": 0, "id": str(index), "user": f"u-{index % 7}",
        "source": ("web", "app", None)[index % 3], "split": "train", "prompt_hash": index // 6, "label": label,
        "n_tokens": length, "weight": 1.0 if label else float(random.uniform(0.5, 2.0)), "input_ids": ids.tolist(),
        "completion_mask": mask.tolist(), "reference_logp": logp,
    }  # fmt: skip


def _write_shard(directory: Path, number: int, rows: list[Row]) -> ShardFacts:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"part-{number:05d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), directory / name)
    chosen = sum(1 for row in rows if row["label"])
    return ShardFacts(
        file=name,
        train_chosen=chosen,
        train_rejected=len(rows) - chosen,
        validation_chosen=0,
        validation_rejected=0,
        train_tokens=sum(len(row["input_ids"]) for row in rows),
        train_pairs=len(pair_places(*(_hashes(rows, label) for label in (True, False)))),
    )


def _hashes(rows: list[Row], label: bool) -> np.ndarray:
    return np.array([row["prompt_hash"] for row in rows if row["label"] is label], np.int64)
