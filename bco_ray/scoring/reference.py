"""The reference pass: one forward of the frozen model gives log-probability and prompt embedding of what is not cached.

Shapes: B rows of a pack, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bco_ray.models.embedder import Embedder
from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import fill_packs, lay_out
from bco_ray.models.policy import Policy
from bco_ray.scoring.cache import Values
from bco_ray.scoring.parts import Caches, Known, Workplace, read_tokens
from bco_ray.storage.ragged import Ragged

EMBEDDING_WIDTH = 256
"""Wider hidden states are projected onto this many random directions; distances survive, storage does not grow."""

BY_REFERENCE = "reference"
"""As the name of the embedding model: the reference model's own states, from the same forward."""


@dataclass(frozen=True)
class ReferenceModel:
    """Which model scores, and how. `embedding` is BY_REFERENCE or the directory of an embedding model."""

    directory: str
    dtype: str
    device: str
    max_tokens: int
    threads: int
    embedding: str = BY_REFERENCE
    quantization: str = "none"


class ReferenceScorer:
    """A Ray Data actor that finishes parts which PrepareStage left pending.

    Models are loaded when there is first something to compute with them.
    """

    def __init__(self, model: ReferenceModel, caches: Caches, workplace: Workplace) -> None:
        torch.set_num_threads(model.threads)
        self.model = model
        self.caches = caches
        self.workplace = workplace

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`item` names the part and is returned. A task that is tried again may find its part finished."""
        if self.workplace.done(item["file"]) is None:
            tokens = read_tokens(self.workplace.tokens(item["file"]))
            known = self.caches.find(tokens)  # again: another job may have been quicker
            fresh = self.compute(tokens, known)
            self.caches.add(tokens, fresh)
            self.workplace.finish(item["file"], tokens, known.merge(fresh), computed=len(fresh.logps))
        return item

    def compute(self, tokens: pa.Table, known: Known) -> Known:
        """What `known` lacks for these KEYED rows; each distinct row and each distinct prompt once."""
        rows = _first_of_each(tokens["row_key"], known.logps)
        prompts = _first_of_each(tokens["prompt_key"], known.embeddings)
        if self.model.embedding != BY_REFERENCE:
            texts = tokens["text"].take(pa.array(list(prompts.values()), pa.int64())).to_pylist()
            return Known(self._run(tokens, rows, {}).logps, self._embed(list(prompts), texts))
        return self._run(tokens, rows, prompts)

    def _run(self, tokens: pa.Table, rows: dict[bytes, int], prompts: dict[bytes, int]) -> Known:
        """One forward for each of `rows`, and for each of `prompts` whose row is not among them (key -> row)."""
        key_of_row, key_of_prompt_row = _inverse(rows), _inverse(_on_rows(tokens, rows, prompts))
        needed = sorted(key_of_row.keys() | key_of_prompt_row.keys())
        found = Known({}, {})
        columns = Ragged(tokens["input_ids"]), Ragged(tokens["completion_mask"])
        lengths = columns[0].lengths
        for pack in fill_packs([lengths[n] for n in needed], self.model.max_tokens) if needed else []:
            numbers = [needed[i] for i in pack]
            scored = self._score(*([column[n] for n in numbers] for column in columns))
            for n, logp, embedding_D in zip(numbers, *scored, strict=True):
                if n in key_of_row:
                    found.logps[key_of_row[n]] = logp[None]
                if n in key_of_prompt_row:
                    found.embeddings[key_of_prompt_row[n]] = embedding_D
        return found

    @torch.inference_mode()
    def _score(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        logps_B, embedding_BD = self.policy.score(lay_out(ids, masks).to(self.model.device))
        return logps_B.cpu().numpy(), project(embedding_BD).cpu().numpy()

    def _embed(self, keys: Sequence[bytes], texts: Sequence[str]) -> Values:
        if not keys:
            return {}
        embedding_PD = project(self.embedder.embed(texts, max_tokens=self.model.max_tokens)).numpy()
        return dict(zip(keys, embedding_PD, strict=True))

    @cached_property
    def policy(self) -> Policy:
        """On its device, checked."""
        dtype = getattr(torch, self.model.dtype)
        policy = Policy(load_frozen(self.model.directory, dtype=dtype, quantization=self.model.quantization))
        policy.to(self.model.device).check()
        return policy

    @cached_property
    def embedder(self) -> Embedder:
        """On its device."""
        return Embedder(self.model.embedding, dtype=getattr(torch, self.model.dtype)).to(self.model.device)


def project(embedding_BD: Tensor, width: int = EMBEDDING_WIDTH) -> Tensor:
    """Onto `width` fixed random directions if D is larger (Johnson-Lindenstrauss); the same matrix everywhere."""
    dimension = embedding_BD.shape[1]
    if dimension <= width:
        return embedding_BD
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(dimension, width, generator=generator) / width**0.5
    projected: Tensor = embedding_BD @ directions.to(embedding_BD.device)
    return projected


def _first_of_each(keys: pa.ChunkedArray, known: Values) -> dict[bytes, int]:
    """Key -> the first row that has it, for keys that are not known."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys.to_pylist()):
        if key not in known:
            first.setdefault(key, row)
    return first


def _on_rows(tokens: pa.Table, rows: dict[bytes, int], prompts: dict[bytes, int]) -> dict[bytes, int]:
    """`prompts`, each moved to a row that is run anyway if there is one."""
    key_of = tokens["prompt_key"].to_pylist()
    run_anyway = {key_of[row]: row for row in reversed(rows.values())}
    return {key: run_anyway.get(key, row) for key, row in prompts.items()}


def _inverse(of: dict[bytes, int]) -> dict[int, bytes]:
    return {row: key for key, row in of.items()}
