"""Ragged rows to padded tensors under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows in batches of similar length with rows x longest <= max_tokens, shortest first.

    A row longer than the budget gets a batch of its own; every index appears once; the order is deterministic.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad(ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows right-padded to the longest: ids (B, T) int64 (padding 0), completion mask (B, T) bool."""
    width = max(len(row) for row in ids)
    ids_BT = torch.zeros(len(ids), width, dtype=torch.int64)
    mask_BT = torch.zeros(len(ids), width, dtype=torch.bool)
    for b, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        ids_BT[b, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
        mask_BT[b, : len(mask)] = torch.from_numpy(np.asarray(mask, dtype=bool))
    return ids_BT, mask_BT
