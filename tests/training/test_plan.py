"""The order of rows: complete, stratified, seeded, resumable, and blind to who computes."""

import numpy as np
import pytest

from bco_ray.training.batches import Share
from bco_ray.training.plan import Plan, ShardCounts

SHARDS = (ShardCounts(10, 30), ShardCounts(0, 25), ShardCounts(20, 5), ShardCounts(7, 0))


def test_every_row_once_per_epoch_in_another_order() -> None:
    plan = Plan(SHARDS, rows_per_step=8, epochs=2, seed=1)
    rows = {epoch: [r for w in plan.windows() if w.epoch == epoch for r in w.rows] for epoch in (0, 1)}
    every = {(s, label, i) for s, c in enumerate(SHARDS) for label, n in ((True, c.chosen), (False, c.rejected))
             for i in range(n)}  # fmt: skip
    assert all(len(rows[e]) == plan.rows == 97 and set(rows[e]) == every for e in (0, 1))
    assert rows[0] != rows[1]


def test_windows_hold_the_ratio_of_the_data() -> None:
    plan = Plan((ShardCounts(100, 300),), rows_per_step=16, epochs=3, seed=0)
    assert {sum(row.label for row in w.rows) for w in plan.windows()} == {4}


def test_same_seed_same_order_other_seed_other_order() -> None:
    def order(seed: int) -> list[object]:
        return [w.rows for w in Plan(SHARDS, 8, 1, seed).windows()]

    assert order(5) == order(5) != order(6)


@pytest.mark.parametrize("pool_rows", [20, 60, 1000])
def test_starting_late_gives_the_same_windows(pool_rows: int) -> None:
    plan = Plan(SHARDS, 8, 3, seed=2, pool_rows=pool_rows)
    whole = list(plan.windows())
    assert len(whole) == plan.total_steps
    for start in (0, 1, 12, 13, 14, 26, 38):
        assert list(plan.windows(start)) == whole[start:]


def test_a_plan_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no train rows"):
        next(Plan((ShardCounts(0, 0),), 8, 1, 0).windows())


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shares_are_disjoint_complete_and_equal_in_number(workers: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 37).tolist()
    shares = [Share(rank, workers, max_tokens=64).take(lengths) for rank in range(workers)]
    assert sorted(i for share in shares for pack in share for i in pack) == list(range(37))
    assert len({len(share) for share in shares}) == 1
    assert all(sum(lengths[i] for i in pack) <= 64 for share in shares for pack in share)


def test_packs_waste_little() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 128).astype(int).clip(8, 1000).tolist()
    packs = Share(0, 1, max_tokens=2048).take(lengths)
    assert len(packs) <= -(-sum(lengths) // 2048) + 1
    assert [0] in Share(0, 1, max_tokens=10).take([30, 4, 4]), "too long for any pack: alone in one"
