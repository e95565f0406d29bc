"""Keys and values of prompts that were read before, in blocks of tokens; the start of a new prompt is looked up here.

A block's key is a digest over its tokens and all before it (and the adapter), so equal keys mean equal contents.

N: blocks in the pool, H: heads, T: tokens in a block, D: head size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from bco_ray.serving.engines.batching.kv_cache import KVCache

BLOCK_TOKENS = 16

_FIRST_BLOCKS = 64


def block_keys(token_ids: Sequence[int], adapter: str | None) -> list[bytes]:
    """A key for every whole block that leaves at least one token over: somebody has to compute the logits."""
    key = hashlib.blake2b((adapter or "").encode(), digest_size=16).digest()
    ids, keys = array("q", token_ids), []
    for start in range(0, len(ids) - BLOCK_TOKENS, BLOCK_TOKENS):
        key = hashlib.blake2b(key + ids[start : start + BLOCK_TOKENS].tobytes(), digest_size=16).digest()
        keys.append(key)
    return keys


class PrefixCache:
    """At most `budget` tokens; the blocks that were used longest ago make room."""

    def __init__(self, budget: int) -> None:
        self._limit = budget // BLOCK_TOKENS
        self._index: OrderedDict[bytes, int] = OrderedDict()  # key -> place in the pool, least recently used first
        self._pool: list[Tensor] = []  # NHTD for keys and values of every layer

    def __len__(self) -> int:
        return len(self._index)

    def known(self, keys: Sequence[bytes]) -> int:
        """How many blocks from the first one on are here."""
        return next((n for n, key in enumerate(keys) if key not in self._index), len(keys))

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """Their tokens in a row (HTD), one tensor for each of the model's buffers. All of them must be here."""
        self._touch(keys)
        index = torch.tensor([self._index[key] for key in keys], device=self._pool[0].device)
        return [blocks_NHTD[index].transpose(0, 1).flatten(1, 2) for blocks_NHTD in self._pool]

    def keep(self, keys: Sequence[bytes], cache: KVCache, row: int) -> None:
        """Remember the blocks of a row without gaps that are not known yet. What it raises leaves it empty."""
        keys = keys[: self._limit]
        self._touch(keys)
        known = self.known(keys)
        if known < len(keys):
            places = [self._place(key) for key in keys[known:]]
            self._touch(keys)
            try:
                self._write(places, cache.tokens(row, known * BLOCK_TOKENS, len(keys) * BLOCK_TOKENS))
            except BaseException:  # half of it is there: nothing is better than what was never written
                self.clear()
                raise

    def clear(self) -> None:
        """Forget everything."""
        self._index.clear()
        self._pool = []

    def _touch(self, keys: Sequence[bytes]) -> None:
        """The first block becomes the most recent one: so a chain loses its end before its start, and has no holes."""
        for key in reversed(keys):
            if key in self._index:
                self._index.move_to_end(key)

    def _place(self, key: bytes) -> int:
        place = len(self._index) if len(self._index) < self._limit else self._index.popitem(last=False)[1]
        self._index[key] = place
        return place

    def _write(self, places: list[int], tokens: list[Tensor]) -> None:
        self._grow(max(places) + 1, tokens)
        index = torch.tensor(places, device=tokens[0].device)
        for blocks_NHTD, tokens_HTD in zip(self._pool, tokens, strict=True):
            heads, _, size = tokens_HTD.shape
            blocks_NHTD[index] = tokens_HTD.reshape(heads, len(places), BLOCK_TOKENS, size).transpose(0, 1)

    def _grow(self, blocks: int, like: list[Tensor]) -> None:
        have = len(self._pool[0]) if self._pool else 0
        if blocks <= have:
            return
        size = min(max(blocks, 2 * have, _FIRST_BLOCKS), self._limit)
        old, self._pool = self._pool, []
        for n, t in enumerate(like):
            self._pool.append(t.new_empty(size, t.shape[0], BLOCK_TOKENS, t.shape[2]))
            if old:
                self._pool[n][:have] = old[n]
