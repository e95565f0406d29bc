"""BCO's bound on DPO and the shift that makes it tight: spec section 5, properties 1 and 2."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bco_ray.objective import (
    apo_zero_unpaired,
    bce,
    bco_pair,
    bco_row_losses,
    dpo,
    error_term,
    exact_shift,
    kto,
    kto_reference_point,
)

gentle = settings(derandomize=True, deadline=None, max_examples=60)
LABELS = torch.tensor([1, 0])


def pair(r_w: float, r_l: float) -> Tensor:
    return torch.tensor([r_w, r_l], dtype=torch.float64)


def gap(rewards: Tensor, delta: float) -> float:
    return (bco_pair(rewards[0], rewards[1], delta=delta) - dpo(rewards[0], rewards[1])).item()


@gentle
@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-30, 30))
def test_bco_is_above_dpo_by_the_gap_formula(r_w: float, r_l: float, delta: float) -> None:
    rewards, here = pair(r_w, r_l), gap(pair(r_w, r_l), delta)
    strictly = max(abs(r_w), abs(r_l), abs(delta)) <= 10
    assert here > (0 if strictly else -1e-12)
    expected = torch.log1p(error_term(rewards, LABELS, delta=delta) / (1 + torch.exp(rewards[1] - rewards[0])))
    assert here == pytest.approx(expected.item(), rel=1e-9, abs=1e-11)
    best = gap(rewards, (r_w + r_l) / 2)
    assert here >= best - 1e-12
    assert best <= math.log(2) + 1e-12


@gentle
@given(st.lists(st.floats(-8, 8), min_size=1), st.lists(st.floats(-8, 8), min_size=1), st.floats(0.01, 3))
def test_exact_shift_minimises_the_error_term(chosen: list[float], rejected: list[float], distance: float) -> None:
    rewards_B = torch.tensor(chosen + rejected, dtype=torch.float64)
    labels_B = torch.tensor([1] * len(chosen) + [0] * len(rejected))
    best = exact_shift(rewards_B, labels_B).item()
    delta = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    error = error_term(rewards_B, labels_B, delta=delta)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(error, delta)
    assert abs(slope.item()) <= 1e-9 * error.item()
    for neighbour in (best - distance, best + distance):
        assert error_term(rewards_B, labels_B, delta=neighbour) > error


def test_the_error_term_needs_both_labels() -> None:
    with pytest.raises(ValueError, match="both labels"):
        error_term(pair(1, 2), torch.tensor([1, 1]), delta=0.0)


def test_with_delta_at_zero_the_gap_has_no_bound() -> None:
    assert gap(pair(-20, -25), 0.0) > 19
    assert gap(pair(-20, -25), -22.5) < 0.16


@gentle
@given(st.floats(-20, 20))
def test_bce_is_bco_unshifted_and_the_others_saturate(reward: float) -> None:
    rewards_B = pair(reward, reward)
    assert torch.equal(bce(rewards_B, LABELS), bco_row_losses(rewards_B, LABELS, delta=0.0))
    torch.testing.assert_close(apo_zero_unpaired(rewards_B, LABELS), kto(rewards_B, LABELS, beta=0.1, z_ref=0.0))
    assert (kto(rewards_B, LABELS, beta=0.1, z_ref=1.0) <= 1).all()


def test_kto_reference_point_of_nothing_is_zero() -> None:
    assert kto_reference_point(0.0, 0) == 0
