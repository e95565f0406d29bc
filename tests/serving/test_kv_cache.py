"""The window on the buffers holds what rows put there, whatever joined, left, grew or slid."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.serving.engines.batching.kv_cache import KVCache, LayerShape

SHAPES = [LayerShape(2, 3, 4), LayerShape(0, 0, 0), LayerShape(1, 2, 2)]


def empty(max_rows: int = 4, budget: int = 400) -> KVCache:
    return KVCache(SHAPES, dtype=torch.float32, device=torch.device("cpu"), max_rows=max_rows, budget=budget)


def append(cache: KVCache, tokens: list[list[float]], counts: list[int] | None = None) -> None:
    """Write one value per new column into every layer."""
    cache.open(len(tokens[0]), counts)
    new = torch.tensor(tokens)[:, None, :, None]
    for layer, shape in zip(cache.layers, SHAPES, strict=True):
        keys = new.expand(-1, shape.heads, -1, shape.key_size)
        layer.update(keys, -new.expand(-1, shape.heads, -1, shape.value_size))
    cache.close()


def prompt(tokens: list[float]) -> KVCache:
    cache = empty()
    cache.start(1, 0, len(tokens))
    append(cache, [tokens])
    return cache


def held(cache: KVCache, row: int) -> list[float]:
    """A row's tokens, the same in every buffer."""
    found = [piece[0, :, 0] for piece in cache.tokens(row, 0, cache.lengths[row])]
    assert all(torch.equal(found[0].abs(), other.abs()) for other in found)
    return list(found[0].tolist())


steps = st.lists(st.one_of(st.integers(1, 90).map(lambda n: ("join", n)), st.just(("step", 0)),
                           st.integers(0, 3).map(lambda n: ("leave", n))), max_size=120)  # fmt: skip


@given(steps)
@settings(max_examples=60, deadline=None)
def test_it_is_a_list_of_lists(todo: list[tuple[str, int]]) -> None:
    cache, rows, number = empty(), list[list[float]](), 0.0
    for what, n in todo:
        if what == "join" and len(rows) < 4:
            rows.append([number := number + 1 for _ in range(n)])
            cache.take(prompt(rows[-1]), [(0, [(0, n)])])
        elif what == "step" and rows:
            number += 1
            append(cache, [[number + r / 8] for r in range(len(rows))])
            for r, row in enumerate(rows):
                row.append(number + r / 8)
        elif what == "leave" and n < len(rows):
            cache.leave(n)
            last = rows.pop()
            if n < len(rows):
                rows[n] = last
        assert [held(cache, r) for r in range(len(rows))] == rows
        assert cache.window.width == max(map(len, rows), default=0)
        if rows:
            cache.open(1)
            assert cache.mask().sum(-1).tolist() == [len(row) + 1 for row in rows]


def test_a_gap_closes_when_a_row_is_taken() -> None:
    source = empty()
    source.start(2, 3, 4)
    source.write(0, 3, [torch.full((shape[0], 2, shape[1]), 7.0) for shape in ((2, 3), (2, 4), (1, 2), (1, 2))])
    append(source, [[0, 1, 2], [4, 5, 6]], [2, 3])
    assert source.padded
    cache = empty()
    cache.take(source, [(0, [(1, 3), (4, 6)]), (1, [(3, 6)])])
    assert held(cache, 0) == [7, 7, 1, 2]
    assert held(cache, 1) == [4, 5, 6]


def test_what_a_failed_row_left_is_never_read_again() -> None:
    """0 times infinity is no padding: neither beside a short newcomer, nor where a long one widens the window."""
    cache = empty()
    for tokens in ([1.0] * 15, [float("nan")] * 20, [1.0]):  # the third, so that the buffers need not grow later
        cache.take(prompt(tokens), [(0, [(0, len(tokens))])])
    cache.leave(2)
    cache.leave(1)
    cache.take(prompt([2.0] * 3), [(0, [(0, 3)])])
    cache.take(prompt([3.0] * 18), [(0, [(0, 18)])])
    append(cache, [[4.0]] * 3)
    w = cache.window
    assert all(buffer[: w.rows, :, w.lo : w.hi].isfinite().all() for buffer in cache.buffers)


def test_buffers_stay_within_the_budget() -> None:
    cache = empty(max_rows=4, budget=400)
    for _ in range(4):
        cache.take(prompt([1.0] * 60), [(0, [(0, 60)])])
    for _ in range(20):
        append(cache, [[1.0]] * 4)
    rows, columns = cache.buffers[0].shape[0], cache.buffers[0].shape[2]
    assert rows * columns <= 400
