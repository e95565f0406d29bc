"""The loss of one micro-batch: spec section 5, properties 3-5 and 9-12. Shapes: B rows."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bco_ray.objective import LossSums, bco_loss, implicit_rewards, kto, unpaired_loss, window_loss

BETA = 0.1
seeds = st.integers(0, 10_000)
shifts = st.floats(-3, 3)
gentle = settings(derandomize=True, deadline=None, max_examples=25)


def make_rows(seed: int, size: int = 12) -> dict[str, Tensor]:
    """float64 rows with both labels, rewards of order 1."""
    generator = torch.Generator().manual_seed(seed)
    reference_B = -50 * torch.rand(size, generator=generator, dtype=torch.float64)
    policy_B = reference_B + 10 * torch.randn(size, generator=generator, dtype=torch.float64)
    labels_B = torch.rand(size, generator=generator) < 0.4
    labels_B[:2] = torch.tensor([True, False])
    weights_B = 0.1 + 3 * torch.rand(size, generator=generator, dtype=torch.float64)
    return {"policy": policy_B, "reference": reference_B, "labels": labels_B, "weights": weights_B}


def loss_and_grad(rows: dict[str, Tensor], by_weight: bool = False, **more: Any) -> tuple[float, Tensor, LossSums]:
    gains = {key: more.pop(key) for key in ("desirable_weight", "undesirable_weight") if key in more}
    policy_B = rows["policy"].clone().requires_grad_()
    constants = {"beta": BETA, "delta": 0.3, "weights_B": rows["weights"], **more}
    sums = bco_loss(policy_B, rows["reference"], rows["labels"], **constants)
    kind = "weight_sum" if by_weight else "count"
    totals = {f"{side}_total": float(getattr(sums, f"{side}_{kind}")) for side in ("chosen", "rejected")}
    loss = window_loss(sums, **totals, **gains)
    return loss.item(), torch.autograd.grad(loss, policy_B)[0], sums


@gentle
@given(seeds, shifts)
def test_adding_a_constant_to_rewards_and_delta_changes_nothing(seed: int, constant: float) -> None:
    rows = make_rows(seed)
    moved = {**rows, "policy": rows["policy"] + constant / BETA}
    loss, grad_B, _ = loss_and_grad(rows)
    moved_loss, moved_grad_B, _ = loss_and_grad(moved, delta=0.3 + constant)
    assert moved_loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(moved_grad_B, grad_B, rtol=1e-9, atol=1e-12)


@gentle
@given(seeds, shifts)
def test_flipping_labels_and_signs_with_swapped_gains_changes_nothing(seed: int, delta: float) -> None:
    rows = make_rows(seed)
    flipped = {**rows, "policy": rows["reference"], "reference": rows["policy"], "labels": ~rows["labels"]}
    loss, *_ = loss_and_grad(rows, delta=delta, desirable_weight=0.7, undesirable_weight=0.2)
    other, *_ = loss_and_grad(flipped, delta=-delta, desirable_weight=0.2, undesirable_weight=0.7)
    assert other == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_where_policy_is_the_reference_rewards_are_exactly_zero(dtype: torch.dtype) -> None:
    rows = make_rows(0)
    logps_B = (rows["policy"] * 37.7).to(dtype)
    sums = bco_loss(logps_B, logps_B, rows["labels"], beta=BETA, delta=0.0)
    assert (implicit_rewards(logps_B, logps_B, beta=BETA) == 0).all()
    assert sums.chosen_reward_square_sum == sums.rejected_reward_square_sum == 0
    assert sums.shift_sums().chosen_reward_sum == 0
    chosen_total, rejected_total = float(sums.chosen_count), float(sums.rejected_count)
    loss = window_loss(sums, chosen_total=chosen_total, rejected_total=rejected_total)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@gentle
@given(seeds, st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]))
def test_invalid_rows_have_no_influence_whatever_they_hold(seed: int, rubbish: float) -> None:
    rows, filler = make_rows(seed, 8), make_rows(seed + 1, 3)
    padded = {name: torch.cat([rows[name], filler[name]]) for name in rows}
    for name in ("policy", "reference", "weights"):
        padded[name][8:] = rubbish
    valid_B = torch.arange(11) < 8
    loss, grad_B, sums = loss_and_grad(rows)
    padded_loss, padded_grad_B, padded_sums = loss_and_grad(padded, valid_B=valid_B)
    assert padded_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(padded_sums.to_vector(), sums.to_vector(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded_grad_B[:8], grad_B)
    assert (padded_grad_B[8:] == 0).all()


@gentle
@given(seeds)
def test_weight_zero_is_no_row_and_weight_two_is_two_rows_in_the_weight_sum_form(seed: int) -> None:
    rows = make_rows(seed)
    without = {name: column[:-1] for name, column in rows.items()}
    silent = {**rows, "weights": torch.cat([rows["weights"][:-1], torch.zeros(1, dtype=torch.float64)])}
    assert loss_and_grad(silent, by_weight=True)[0] == pytest.approx(loss_and_grad(without, by_weight=True)[0])
    assert loss_and_grad(silent, by_weight=True)[1][-1] == 0
    twice = {name: torch.cat([column, column[-1:]]) for name, column in rows.items()}
    double = {**rows, "weights": torch.cat([rows["weights"][:-1], 2 * rows["weights"][-1:]])}
    assert loss_and_grad(double, by_weight=True)[0] == pytest.approx(loss_and_grad(twice, by_weight=True)[0])


@gentle
@given(seeds, shifts)
def test_gradient_is_the_closed_form_with_everything_else_constant(seed: int, shift: float) -> None:
    rows = make_rows(seed)
    constants_B = {name: rows[name].clone().requires_grad_() for name in ("reference", "weights")}
    delta = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    policy_B = rows["policy"].clone().requires_grad_()
    weights_B = constants_B["weights"]
    sums = bco_loss(policy_B, constants_B["reference"], rows["labels"], beta=BETA, delta=delta, weights_B=weights_B)
    window_loss(sums, chosen_total=3.0, rejected_total=5.0).backward()
    assert delta.grad is None
    assert constants_B["reference"].grad is constants_B["weights"].grad is None
    rewards_B = BETA * (rows["policy"] - rows["reference"])
    up_B = -0.5 / 3 * torch.sigmoid(-(rewards_B - shift))
    down_B = 0.5 / 5 * torch.sigmoid(rewards_B - shift)
    expected_B = rows["weights"] * BETA * torch.where(rows["labels"], up_B, down_B)
    torch.testing.assert_close(policy_B.grad, expected_B, rtol=1e-10, atol=1e-15)


@gentle
@given(seeds, shifts)
def test_gradient_has_the_labels_sign_and_a_bound(seed: int, delta: float) -> None:
    rows = make_rows(seed)
    _, grad_B, sums = loss_and_grad(rows, delta=delta)
    assert (grad_B[rows["labels"]] <= 0).all()
    assert (grad_B[~rows["labels"]] >= 0).all()
    count_B = torch.where(rows["labels"], sums.chosen_count, sums.rejected_count)
    assert (grad_B.abs() <= 0.5 * rows["weights"] * BETA / count_B).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_finite_for_rewards_up_to_ten_thousand(dtype: torch.dtype) -> None:
    policy_B = torch.tensor([1e4, -1e4, 1e4, -1e4], dtype=dtype, requires_grad=True)
    labels_B = torch.tensor([1, 1, 0, 0])
    sums = bco_loss(policy_B, torch.zeros(4, dtype=dtype), labels_B, beta=1.0, delta=0.0)
    loss = window_loss(sums, chosen_total=2, rejected_total=2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(5e3, rel=1e-2)
    assert policy_B.grad is not None
    assert torch.isfinite(policy_B.grad).all()
    assert torch.isfinite(sums.to_vector()).all()
    assert sums.non_finite_count == 0


def test_labels_as_bool_integers_or_floats_are_the_same() -> None:
    rows = make_rows(3)
    expected = loss_and_grad(rows)[2].to_vector()
    for dtype in (torch.int64, torch.int32, torch.float32, torch.bfloat16):
        sums = loss_and_grad({**rows, "labels": rows["labels"].to(dtype)})[2]
        assert torch.equal(sums.to_vector(), expected)


@pytest.mark.parametrize(("column", "value"), [("policy", math.nan), ("reference", -math.inf), ("weights", math.nan)])
def test_a_valid_row_that_is_not_finite_is_counted(column: str, value: float) -> None:
    rows = make_rows(4)
    rows[column][5] = value
    assert loss_and_grad(rows)[2].non_finite_count == 1


def test_a_label_that_is_neither_0_nor_1_is_counted_and_in_no_class() -> None:
    rows = make_rows(5)
    labels_B = rows["labels"].long()
    labels_B[4:6] = torch.tensor([2, -1])
    sums = loss_and_grad({**rows, "labels": labels_B})[2]
    assert sums.non_finite_count == 2
    assert sums.chosen_count + sums.rejected_count == 10


def test_unequal_shapes_are_refused_not_broadcast() -> None:
    rows = make_rows(6)
    with pytest.raises(ValueError, match="one shape"):
        bco_loss(rows["policy"], rows["reference"][:, None], rows["labels"], beta=BETA, delta=0.0)


def test_no_rows_give_zeros_that_can_be_back_propagated() -> None:
    none_B = torch.zeros(0, requires_grad=True)
    sums = bco_loss(none_B, torch.zeros(0), torch.zeros(0, dtype=torch.bool), beta=BETA, delta=0.1)
    loss = window_loss(sums, chosen_total=4, rejected_total=0)
    loss.backward()
    assert loss.item() == 0
    assert (sums.to_vector() == 0).all()


def test_sums_survive_the_vector_and_have_no_gradient_but_the_losses() -> None:
    policy_B = make_rows(7)["policy"].requires_grad_()
    rows = make_rows(7)
    sums = bco_loss(policy_B, rows["reference"], rows["labels"], beta=BETA, delta=0.2, weights_B=rows["weights"])
    vector = sums.to_vector()
    assert vector.dtype == torch.float64
    assert not vector.requires_grad
    assert torch.equal(LossSums.from_vector(vector).to_vector(), vector)
    assert torch.equal((LossSums.zero() + LossSums.from_vector(vector)).to_vector(), vector)
    with_grad = {name for name, tensor in vars(sums).items() if tensor.requires_grad}
    assert with_grad == {"chosen_loss_sum", "rejected_loss_sum", "sft_loss_sum"}
    assert all(tensor.dtype == torch.float64 for name, tensor in vars(sums).items() if name not in with_grad)


def test_metrics_sums_are_those_of_the_rows() -> None:
    rows = make_rows(8)
    _, _, sums = loss_and_grad(rows, delta=0.25)
    rewards_B, up_B = BETA * (rows["policy"] - rows["reference"]), rows["labels"]
    assert sums.chosen_logps_sum.item() == pytest.approx(rows["policy"][up_B].sum().item())
    assert sums.rejected_reward_square_sum.item() == pytest.approx(rewards_B[~up_B].square().sum().item())
    assert sums.chosen_correct_count == (rewards_B[up_B] > 0.25).sum()
    assert sums.rejected_correct_count == (rewards_B[~up_B] < 0.25).sum()
    assert sums.chosen_weight_sum.item() == pytest.approx(rows["weights"][up_B].sum().item())


def test_a_negative_total_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        window_loss(LossSums.zero(), chosen_total=-1, rejected_total=2)


def test_another_row_loss_shares_the_sums() -> None:
    rows = make_rows(9)
    arguments = (rows["policy"], rows["reference"], rows["labels"])
    kto_sums = unpaired_loss(
        *arguments, row_losses=lambda r, y: kto(r, y, beta=BETA, z_ref=0.4), beta=BETA, delta=BETA * 0.4
    )
    bco_sums = bco_loss(*arguments, beta=BETA, delta=BETA * 0.4)
    own = {"chosen_loss_sum", "rejected_loss_sum", "chosen_pull_sum", "rejected_pull_sum"}
    shared = [name for name in vars(bco_sums) if name not in own]
    assert all(torch.equal(getattr(kto_sums, name), getattr(bco_sums, name)) for name in shared)
    assert kto_sums.chosen_loss_sum < kto_sums.chosen_count
