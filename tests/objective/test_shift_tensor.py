"""The shift on the device is the shift."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.objective import RewardShift, ShiftSums, ShiftTensor

counts = st.integers(0, 40)
rewards = st.floats(-5, 5)
windows = st.lists(st.tuples(rewards, counts, rewards, counts), min_size=1, max_size=12)
NEVER = torch.tensor(data=False)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(windows, st.sampled_from([0.0, 30.0, 512.0, math.inf]))
def test_it_goes_the_same_way(sums: list[tuple[float, int, float, int]], half_life_rows: float) -> None:
    value = RewardShift(half_life_rows=half_life_rows)
    tensor = ShiftTensor.of(value)
    for up, ups, down, downs in sums:
        window = (up * ups, ups, down * downs, downs)
        value = value.advance(ShiftSums(*window))
        tensor = tensor.advance(torch.tensor(window, dtype=torch.float64), unless=NEVER)
        assert tensor.delta.item() == pytest.approx(value.delta, rel=1e-12, abs=1e-15)
        assert tensor.value().rows_seen == value.rows_seen
        assert (tensor.value().chosen_mean is None) == (value.chosen_mean is None)


def test_there_and_back_is_exact() -> None:
    for state in (RewardShift(), RewardShift(30).advance(ShiftSums(0.1, 3, -7.3, 2)), RewardShift(math.inf)):
        assert ShiftTensor.of(state).value() == state


@pytest.mark.parametrize("window", [(1.0, 2, 3.0, 4), (math.nan, 2, math.nan, 4)])
def test_a_step_that_was_refused_leaves_it_alone(window: tuple[float, ...]) -> None:
    before = RewardShift(30).advance(ShiftSums(0.1, 3, -7.3, 2))
    after = ShiftTensor.of(before).advance(torch.tensor(window, dtype=torch.float64), unless=~NEVER)
    assert after.value() == before
