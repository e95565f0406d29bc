"""Ragged rows laid end to end: the one form in which a policy sees them, so that no padding is ever paid for.

Shapes: B rows, N tokens of all rows, K scored (completion) tokens of all rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_TOKENS = 32
"""A shorter pack is filled up to this. Below some 16 rows matrix libraries take other kernels, whose last bits differ:
then a row's log-probability would depend on its company, and a reward at step 0 would not be exactly 0."""


@dataclass(frozen=True)
class Pack:
    """Some rows as one sequence. Attention stays within each row, positions restart with it.

    Where to read what is worked out here, on the host: `source_K` says where the hidden state lies that predicts scored
    token k, `target_K` which token that is, `row_of_token_K` whose it is. Token 0 of a row has no prediction and never
    counts. A filler, where one is needed, is a last row of its own (row B), which nobody looks at.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    bounds: Tensor
    """(rows + 1,) int32: where each row starts, and the end."""
    source_K: Tensor
    target_K: Tensor
    row_of_token_K: Tensor
    lengths: tuple[int, ...]
    """Tokens of each row, the filler's last: on the host, for whoever must not ask the device."""
    prompt_lengths: tuple[int, ...]
    """(B,): tokens before each row's first scored one."""

    @property
    def rows(self) -> int:
        """B, the filler not counted."""
        return len(self.prompt_lengths)

    def to(self, device: torch.device | str) -> Pack:
        """All tensors on `device`; nothing waits if they are pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Pack:
        """In memory that a GPU copies from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Pack:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {k: change(value) for k, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def lay_out(ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Pack:
    """Rows of token ids with their completion masks as one Pack; at least one row, each of at least one token."""
    rows = len(ids)
    scored = [np.flatnonzero(np.asarray(mask)[1:]) for mask in masks]
    prompts = [int(at[0]) + 1 if len(at) else len(mask) for at, mask in zip(scored, masks, strict=True)]
    lengths = [len(row) for row in ids]
    missing = LEAST_TOKENS - sum(lengths)
    if missing > 0:
        ids, lengths = [*ids, np.zeros(missing, np.int64)], [*lengths, missing]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens_N = np.concatenate([np.asarray(row, np.int64) for row in ids])
    source_K = np.concatenate([at + start for at, start in zip(scored, bounds[:rows], strict=True)])
    row_K = np.repeat(np.arange(rows), [len(at) for at in scored])
    short = max(0, LEAST_TOKENS - len(source_K))
    source_K, row_K = np.pad(source_K, (0, short)), np.pad(row_K, (0, short), constant_values=rows)
    return Pack(
        torch.from_numpy(tokens_N),
        torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        torch.from_numpy(bounds.astype(np.int32)),
        torch.from_numpy(source_K),
        torch.from_numpy(tokens_N[np.minimum(source_K + 1, len(tokens_N) - 1)]),
        torch.from_numpy(row_K),
        tuple(lengths),
        tuple(prompts),
    )


def fill_packs(lengths: Sequence[int], max_tokens: int, *, multiple_of: int = 1) -> list[list[int]]:
    """Indices in packs of at most `max_tokens` tokens, as even as they can be; their number divides by `multiple_of`.

    Longest first, each into the pack that has least so far. An index longer than the budget gets a pack of its own.
    Every index appears once; packs may be empty; the same lengths give the same packs.
    """
    count = -(-sum(lengths) // max_tokens)
    while True:
        count = -(-max(1, min(count, len(lengths))) // multiple_of) * multiple_of
        packs = _even(lengths, count)
        if all(len(pack) <= 1 or sum(lengths[i] for i in pack) <= max_tokens for pack in packs):
            return packs
        count += 1 + count // 16


def _even(lengths: Sequence[int], count: int) -> list[list[int]]:
    packs: list[list[int]] = [[] for _ in range(count)]
    least = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, number = heapq.heappop(least)
        packs[number].append(index)
        heapq.heappush(least, (tokens + lengths[index], number))
    return packs
