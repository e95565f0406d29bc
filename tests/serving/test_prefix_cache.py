"""What is remembered of prompts: whole blocks, their beginnings longest, never more than the budget."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.serving.engines.batching.kv_cache import KVCache, LayerShape
from bco_ray.serving.engines.batching.prefix_cache import BLOCK_TOKENS, PrefixCache, block_keys


def row_of(ids: list[int]) -> KVCache:
    """A cache with one row whose keys are its token ids."""
    cache = KVCache([LayerShape(2, 3, 3)], dtype=torch.float32, device=torch.device("cpu"), max_rows=1, budget=0)
    cache.start(1, len(ids), 1)
    cache.write(0, len(ids), [torch.tensor(ids).float()[None, :, None].expand(2, -1, 3)] * 2)
    return cache


def test_a_key_tells_all_tokens_before_and_the_adapter() -> None:
    ids = list(range(3 * BLOCK_TOKENS + 1))
    changed = [99, *ids[1:]]
    assert len(block_keys(ids, None)) == 3
    assert not set(block_keys(ids, None)) & set(block_keys(changed, None))
    assert not set(block_keys(ids, None)) & set(block_keys(ids, "helper/1"))
    assert block_keys(ids[:-1], None) == block_keys(ids, None)[:2], "one token is left to compute"


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_reading_gives_what_was_kept(seed: int, blocks: int) -> None:
    rng, cache = random.Random(seed), PrefixCache(blocks * BLOCK_TOKENS)
    stems = [[rng.randrange(1000) for _ in range(80)] for _ in range(3)]
    for _ in range(25):
        ids = rng.choice(stems)[: rng.randrange(81)] + [rng.randrange(1000) for _ in range(rng.randrange(1, 60))]
        keys = block_keys(ids, None)
        if known := cache.known(keys):
            pieces = cache.read(keys[:known])
            assert all(piece[0, :, 0].tolist() == ids[: known * BLOCK_TOKENS] for piece in pieces)
        cache.keep(keys, row_of(ids), 0)
        assert cache.known(keys) == min(len(keys), blocks)
        assert len(cache) <= blocks


def test_the_end_of_a_chain_goes_first() -> None:
    cache = PrefixCache(4 * BLOCK_TOKENS)
    old, new = ([n] * (3 * BLOCK_TOKENS + 1) for n in (1, 2))
    cache.keep(block_keys(old, None), row_of(old), 0)
    cache.keep(block_keys(new, None)[:2], row_of(new), 0)
    assert cache.known(block_keys(old, None)) == 2
