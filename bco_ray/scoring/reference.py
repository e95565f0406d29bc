"""The reference pass: one forward of the frozen model yields log-probability and prompt embedding of every row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bco_ray.models.batching import pad, token_budget_batches
from bco_ray.models.loading import load_frozen
from bco_ray.models.policy import Policy
from bco_ray.schema import REFERENCE
from bco_ray.storage.quarantine import Quarantine

EMBEDDING_WIDTH = 256
"""Wider hidden states are projected onto this many random directions; distances survive, storage does not grow."""


@dataclass(frozen=True)
class ReferenceModel:
    """Which model scores, and how."""

    directory: str
    dtype: str
    device: str
    max_tokens: int
    threads: int


class ReferenceScorer:
    """A Ray Data actor: holds the frozen model and adds `reference_logp` and `embedding` to blocks of TOKENS.

    A row whose log-probability is not finite would spoil every step it is in; it goes to `quarantine`.
    """

    def __init__(self, model: ReferenceModel, quarantine: Path) -> None:
        torch.set_num_threads(model.threads)
        self.device = torch.device(model.device)
        self.policy = Policy(load_frozen(model.directory, dtype=getattr(torch, model.dtype))).to(self.device)
        self.policy.check_head()
        self.max_tokens = model.max_tokens
        self.quarantine = Quarantine(quarantine)

    def __call__(self, tokens: pa.Table) -> pa.Table:
        """One block in (TOKENS), one out (REFERENCE), rows in the same order."""
        if not tokens.num_rows:
            return pa.Table.from_pylist([], schema=REFERENCE)
        scored, usable_N = self._score_block(tokens)
        refused = [
            {"file": row["file"], "position": row["position"], "reason": "non_finite_reference",
             "detail": "the reference model's log-probability or embedding is not finite", "raw": b""}
            for row in tokens.select(["file", "position"]).filter(pa.array(~usable_N)).to_pylist()
        ]  # fmt: skip
        self.quarantine.write((tokens["file"][0].as_py(), tokens["position"][0].as_py()), tokens.num_rows, refused)
        return scored.filter(pa.array(usable_N))

    def _score_block(self, tokens: pa.Table) -> tuple[pa.Table, np.ndarray]:
        """The block with its two new columns, and which rows are finite (N,)."""
        logps = np.empty(tokens.num_rows, dtype=np.float32)
        embeddings: list[Any] = [None] * tokens.num_rows
        ids, masks = _rows(tokens["input_ids"]), _rows(tokens["completion_mask"])
        for batch in token_budget_batches([len(row) for row in ids], self.max_tokens):
            logps_B, embedding_BD = self._score([ids[i] for i in batch], [masks[i] for i in batch])
            logps[batch] = logps_B.numpy()
            for i, embedding_D in zip(batch, embedding_BD.numpy(), strict=True):
                embeddings[i] = embedding_D
        columns = [*tokens.columns, pa.array(logps), pa.array(embeddings, pa.list_(pa.float32()))]
        usable_N = np.isfinite(logps) & np.isfinite(np.stack(embeddings)).all(1)
        return pa.table(columns, schema=REFERENCE), usable_N

    @torch.inference_mode()
    def _score(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        ids_BT, mask_BT = pad(ids, masks)
        logps_B, embedding_BD = self.policy.score(ids_BT.to(self.device), mask_BT.to(self.device))
        return logps_B.cpu(), project(embedding_BD).cpu()


def project(embedding_BD: Tensor, width: int = EMBEDDING_WIDTH) -> Tensor:
    """Onto `width` fixed random directions if D is larger (Johnson-Lindenstrauss); the same matrix everywhere."""
    dimension = embedding_BD.shape[1]
    if dimension <= width:
        return embedding_BD
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(dimension, width, generator=generator) / width**0.5
    projected: Tensor = embedding_BD @ directions.to(embedding_BD.device)
    return projected


def _rows(column: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(value) for value in column.to_pylist()]
