"""What holds across loss and shift together: spec section 5, properties 6 (without processes), 7 and 8."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bco_ray.objective import LossSums, RewardShift, ShiftSums, bco_loss, window_loss

gentle = settings(derandomize=True, deadline=None, max_examples=25)
BETA, BEFORE = 0.1, RewardShift().advance(ShiftSums(1.5, 4, -3.0, 6))


def window(seed: int, size: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Policy, reference (float64) and labels; for one seed in five a class is missing."""
    generator = torch.Generator().manual_seed(seed)
    reference_B = -50 * torch.rand(size, generator=generator, dtype=torch.float64)
    policy_B = reference_B + 10 * torch.randn(size, generator=generator, dtype=torch.float64)
    return policy_B, reference_B, torch.rand(size, generator=generator) < (0.3 if seed % 5 else 0.0)


def split(size: int, seed: int, workers: int) -> list[list[Tensor]]:
    """Row numbers per worker and micro-batch, ragged, some of them empty."""
    rng = random.Random(seed)
    parts = [[[] for _ in range(rng.randint(1, 4))] for _ in range(workers)]  # type: ignore[var-annotated]
    for row in rng.sample(range(size), size):
        rng.choice(rng.choice(parts[: rng.randint(1, workers)])).append(row)
    return [[torch.tensor(rows, dtype=torch.long) for rows in worker] for worker in parts]


def run_window(rows: tuple[Tensor, Tensor, Tensor], parts: list[list[Tensor]]) -> tuple[float, Tensor, RewardShift]:
    """One step as the trainer takes it: local losses, one summed vector, gradients averaged over workers."""
    labels_B = rows[2]
    policy_B = rows[0].clone().requires_grad_()
    totals = {"chosen_total": float(labels_B.sum()), "rejected_total": float((~labels_B).sum())}
    vector, grad_B = LossSums.zero().to_vector(), torch.zeros_like(policy_B)
    for worker in parts:
        for micro in worker:
            sums = bco_loss(policy_B[micro], rows[1][micro], labels_B[micro], beta=BETA, delta=BEFORE.delta)
            local = len(parts) * window_loss(sums, **totals)
            grad_B += torch.autograd.grad(local, policy_B)[0] / len(parts)
            vector += sums.to_vector()
    reduced = LossSums.from_vector(vector)
    return window_loss(reduced, **totals).item(), grad_B, BEFORE.advance(reduced.shift_sums())


@gentle
@given(st.integers(0, 1000), st.integers(1, 4))
def test_any_split_of_a_window_is_the_same_step(seed: int, workers: int) -> None:
    rows = window(seed)
    loss, grad_B, shift = run_window(rows, [[torch.arange(20)]])
    split_loss, split_grad_B, split_shift = run_window(rows, split(20, seed, workers))
    assert split_loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(split_grad_B, grad_B, rtol=1e-10, atol=1e-14)
    assert split_shift.delta == pytest.approx(shift.delta, rel=1e-10)
    assert split_shift.rows_seen == shift.rows_seen == 30


@gentle
@given(st.integers(0, 1000))
def test_order_of_rows_is_free_and_order_of_windows_is_only_deltas_path(seed: int) -> None:
    rows = window(seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    loss, grad_B, shift = run_window(rows, [[torch.arange(20)]])
    other_loss, other_grad_B, other_shift = run_window(rows, [[order]])
    assert other_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(other_grad_B, grad_B)
    assert other_shift.delta == pytest.approx(shift.delta, rel=1e-12)
    first, second = ShiftSums(2.0, 4, -1.0, 4), ShiftSums(-2.0, 4, -3.0, 4)
    there, back = BEFORE.advance(first).advance(second), BEFORE.advance(second).advance(first)
    assert there.delta != back.delta
    assert there.rows_seen == back.rows_seen


@gentle
@given(st.integers(0, 1000).filter(lambda seed: seed % 5 != 0), st.booleans())
def test_doubling_one_class_changes_the_pooled_means_only(seed: int, label: bool) -> None:
    policy_B, reference_B, labels_B = window(seed, 40)
    rows = torch.cat([torch.arange(40), (labels_B == label).nonzero()[:, 0]])
    once = bco_loss(policy_B, reference_B, labels_B, beta=BETA, delta=BEFORE.delta)
    twice = bco_loss(policy_B[rows], reference_B[rows], labels_B[rows], beta=BETA, delta=BEFORE.delta)
    assert balanced(twice) == pytest.approx(balanced(once), rel=1e-12)
    deltas = [RewardShift().advance(sums.shift_sums()).delta for sums in (once, twice)]
    assert deltas[1] == pytest.approx(deltas[0], rel=1e-12, abs=1e-14)
    assert abs(pooled(twice) - pooled(once)) > 1e-9
    assert abs(pooled_reward(twice) - pooled_reward(once)) > 1e-9


def balanced(sums: LossSums) -> float:
    return window_loss(sums, chosen_total=float(sums.chosen_count), rejected_total=float(sums.rejected_count)).item()


def pooled(sums: LossSums) -> float:
    rows = sums.chosen_count + sums.rejected_count
    return ((sums.chosen_loss_sum + sums.rejected_loss_sum) / rows).item()


def pooled_reward(sums: LossSums) -> float:
    rows = sums.chosen_count + sums.rejected_count
    return ((sums.chosen_reward_sum + sums.rejected_reward_sum) / rows).item()


def test_evaluating_between_steps_leaves_the_state_alone() -> None:
    rows, state = window(1), BEFORE.state_dict()
    sums = bco_loss(*rows, beta=BETA, delta=BEFORE.delta)
    balanced(sums)
    assert BEFORE.state_dict() == state
    assert balanced(sums) == balanced(bco_loss(*rows, beta=BETA, delta=BEFORE.delta))
