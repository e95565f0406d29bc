"""Embedding models (BGE, E5, MiniLM, ...) as transformers loads them: texts in, one vector each out.

Shapes: N texts, B of them at a time, T tokens (right-padded), D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from bco_ray.errors import ModelError
from bco_ray.storage import files
from bco_ray.storage.local_copies import local_copy

LONGEST_INPUT = 512
"""Tokens read of a text if neither the tokenizer nor the model's config says how many it can."""


class Embedder(nn.Module):
    """The mean of the last hidden states over a text's tokens; what is beyond the model's longest input is cut."""

    def __init__(self, directory: str | Path, *, dtype: torch.dtype) -> None:
        super().__init__()
        config = files.path_of(str(directory)) / "config.json"
        if not config.is_file():  # transformers would ask the hub for a name like that
            raise _unusable(directory, "it has no config.json")
        try:
            there = str(local_copy(directory))
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(there)
            self.encoder: Any = transformers.AutoModel.from_pretrained(there, dtype=dtype)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _unusable(directory, next(iter(str(error).strip().splitlines()), type(error).__name__)) from None
        self.encoder.requires_grad_(False).eval()
        configured = getattr(self.encoder.config, "max_position_embeddings", LONGEST_INPUT)
        self.max_length = min(int(self.tokenizer.model_max_length), int(configured))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], *, max_tokens: int) -> Tensor:
        """(N, D) float32 on the CPU, in the order of `texts`; batches are padded to at most `max_tokens` tokens."""
        encoded = self.tokenizer([text or " " for text in texts], truncation=True, max_length=self.max_length)
        ids = encoded["input_ids"]
        embedding_ND = torch.empty(len(ids), self.encoder.config.hidden_size)
        for batch in _padded_batches([len(row) for row in ids], max_tokens):
            embedding_ND[batch] = self._mean_states([ids[i] for i in batch]).cpu()
        return embedding_ND

    def _mean_states(self, ids: Sequence[Sequence[int]]) -> Tensor:
        width = max(len(row) for row in ids)
        padding = self.tokenizer.pad_token_id or 0
        ids_BT = torch.tensor([[*row, *[padding] * (width - len(row))] for row in ids], device=self.encoder.device)
        lengths_B = torch.tensor([len(row) for row in ids], device=self.encoder.device)
        mask_BT = torch.arange(width, device=self.encoder.device)[None] < lengths_B[:, None]
        hidden_BTD = self.encoder(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        sums_BD: Tensor = (hidden_BTD.float() * mask_BT.unsqueeze(-1)).sum(1)
        return sums_BD / lengths_B[:, None]


def _padded_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of texts of similar length with texts x longest <= max_tokens; a longer text gets a batch of its own."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _unusable(directory: str | Path, why: str) -> ModelError:
    return ModelError(
        f"scoring.embedding: {directory}: cannot load an embedding model ({why}). Name a directory written by "
        "save_pretrained with its tokenizer, or `reference`."
    )
