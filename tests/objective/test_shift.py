"""The reward shift: spec section 5, property 13, and the values' part of 14."""

import dataclasses
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.objective import RewardShift, ShiftSums, decay_per_window

gentle = settings(derandomize=True, deadline=None, max_examples=50)


def windows(seed: int, count: int = 20) -> list[ShiftSums]:
    """Windows of all sizes; some lack a class, some are empty."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        up, down = rng.choice([0, 0, 1, 3, 60]), rng.choice([0, 0, 1, 5, 40])
        made.append(ShiftSums(up * rng.gauss(0, 1) if up else 0.0, up, down * rng.gauss(-1, 1) if down else 0.0, down))
    return made


def deltas(shift: RewardShift, sums: list[ShiftSums]) -> list[float]:
    path = []
    for window in sums:
        shift = shift.advance(window)
        path.append(shift.delta)
    return path


@gentle
@given(st.integers(0, 1000))
def test_half_life_zero_is_the_last_batch_and_infinite_is_cumulative(seed: int) -> None:
    batch, cumulative, total = RewardShift(0.0), RewardShift(math.inf), ShiftSums()
    for window in windows(seed):
        batch, cumulative, total = batch.advance(window), cumulative.advance(window), total.merge(window)
        if window.chosen_count:
            assert batch.chosen_mean == window.chosen_reward_sum / window.chosen_count
        if total.rejected_count:
            assert cumulative.rejected_mean == pytest.approx(total.rejected_reward_sum / total.rejected_count)
    assert cumulative.rows_seen == total.rows


@gentle
@given(st.integers(0, 1000), st.sampled_from([0.0, 7.0, 512.0, math.inf]))
def test_a_missing_class_leaves_its_mean(seed: int, half_life_rows: float) -> None:
    shift = RewardShift(half_life_rows)
    for window in windows(seed):
        shift, before = shift.advance(window), shift
        if not window.chosen_count and before.chosen_mean is not None:
            assert shift.chosen_mean == pytest.approx(before.chosen_mean)
        if not window.rejected_count and before.rejected_mean is not None:
            assert shift.rejected_mean == pytest.approx(before.rejected_mean)


def test_a_class_gone_for_ever_keeps_its_last_mean() -> None:
    shift = RewardShift(7.0).advance(ShiftSums(2.0, 4, -7.0, 3))
    for _ in range(600):
        shift = shift.advance(ShiftSums(8.0, 16, 0.0, 0))
    assert shift.sums.rejected_count == 0
    assert shift.rejected_mean == pytest.approx(-7 / 3, rel=1e-12)
    assert shift.delta == pytest.approx((0.5 - 7 / 3) / 2, rel=1e-12)


@gentle
@given(st.integers(0, 1000), st.sampled_from([0.0, 7.3, 512.0, math.inf]), st.integers(0, 20))
def test_a_checkpoint_at_any_step_repeats_the_deltas_to_the_bit(seed: int, half_life_rows: float, stop: int) -> None:
    sums = windows(seed)
    whole = deltas(RewardShift(half_life_rows), sums)
    shift = RewardShift(half_life_rows)
    for window in sums[:stop]:
        shift = shift.advance(window)
    text = json.dumps(shift.state_dict(), allow_nan=False)
    resumed = RewardShift.from_state(json.loads(text))
    assert resumed == shift
    assert deltas(resumed, sums[stop:]) == whole[stop:]


@gentle
@given(st.integers(0, 1000))
def test_a_window_split_over_workers_gives_the_same_state(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards_B = torch.randn(24, generator=generator, dtype=torch.float64)
    labels_B = torch.rand(24, generator=generator) < 0.3
    whole = RewardShift.observe(rewards_B, labels_B)
    parts = torch.tensor_split(torch.arange(24), [3, 3, 17])
    merged = ShiftSums()
    for rows in parts:
        merged = merged.merge(RewardShift.observe(rewards_B[rows], labels_B[rows]))
    assert dataclasses.astuple(merged) == pytest.approx(dataclasses.astuple(whole), abs=1e-12)
    assert RewardShift().advance(merged).delta == pytest.approx(RewardShift().advance(whole).delta, abs=1e-12)


def test_an_empty_window_and_an_observation_leave_the_value_alone() -> None:
    for half_life_rows in (0.0, 512.0, math.inf):
        shift = RewardShift(half_life_rows).advance(ShiftSums(1.0, 2, -4.0, 2))
        state = shift.state_dict()
        assert shift.advance(ShiftSums()) is shift
        shift.observe(torch.ones(3), torch.ones(3))
        shift.advance(ShiftSums(5.0, 1, 5.0, 1))
        assert shift.state_dict() == state


def test_a_window_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        RewardShift().advance(ShiftSums(math.nan, 3, 0.0, 1))


def test_observing_takes_no_gradient_and_ignores_what_is_invalid() -> None:
    rewards_B = torch.tensor([1.0, math.nan, -2.0], requires_grad=True)
    sums = RewardShift.observe(rewards_B, torch.tensor([True, True, False]), torch.tensor([1, 0, 1]))
    assert sums == ShiftSums(1.0, 1.0, -2.0, 1.0)


def test_a_torn_state_is_refused() -> None:
    state = RewardShift().state_dict()
    for torn in ({**state, "sums": {}}, {**state, "other": 1}, {"half_life_rows": 1.0}):
        with pytest.raises(ValueError, match="not the state"):
            RewardShift.from_state(torn)


def test_delta_waits_for_both_classes_and_is_never_clamped() -> None:
    shift = RewardShift().advance(ShiftSums(-900.0, 3, 0.0, 0))
    assert shift.delta == 0
    assert shift.advance(ShiftSums(0.0, 0, -1500.0, 3)).delta == -400


@pytest.mark.parametrize("half_life_rows", [-1.0, math.nan])
def test_a_half_life_must_be_a_length(half_life_rows: float) -> None:
    with pytest.raises(ValueError, match="half_life_rows"):
        RewardShift(half_life_rows)


def test_decay_at_the_ends() -> None:
    assert decay_per_window(128, 0) == 0
    assert decay_per_window(128, math.inf) == 1
    assert decay_per_window(512, 512) == 0.5
