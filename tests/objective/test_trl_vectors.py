"""Our losses against TRL's own code (tests/data/trl-vectors.json, made by benchmarks/trl_vectors.py), to 1e-6.

1.16.0 for KTO, APO-zero, DPO, its bco_pair and SFT; 1.13.0, the last with a BCOTrainer, for BCO. How the two ways of
taking means relate: TRL takes one over all N rows, `window_loss` one per class. With gains (a, b) TRL's loss is ours
with gains (a n+/N, b n-/N), hence the same as our default only where both of these are 0.5.
"""

import functools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bco_ray.objective import (
    LOSSES,
    LossSums,
    RewardShift,
    apo_zero_unpaired,
    bco_loss,
    bco_pair,
    bco_row_losses,
    chunked_logps,
    density_ratio,
    dpo,
    implicit_rewards,
    kto,
    kto_reference_point,
    loss_sums,
    scored_tokens,
    sum_by_row,
    window_loss,
)

Case = dict[str, Any]
near = partial(pytest.approx, rel=1e-6, abs=1e-6)
near_grad = partial(pytest.approx, rel=1e-6, abs=1e-12)
f64 = partial(torch.tensor, dtype=torch.float64)


@functools.cache
def vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "trl-vectors.json").read_text())
    return found


def each(group: str) -> pytest.MarkDecorator:
    cases = vectors()[group]["cases"]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def bco_case(name: str) -> tuple[Case, list[Case]]:
    """(inputs, what TRL found for each batch)."""
    case = next(case for case in vectors()["bco"]["cases"] if case["name"] == name)
    return case["inputs"], case["outputs"]


def rows(inputs: Case) -> tuple[Tensor, Tensor, Tensor]:
    return f64(inputs["policy_logps"], requires_grad=True), f64(inputs["ref_logps"]), torch.tensor(inputs["labels"])


def rewards(inputs: Case) -> Tensor:
    policy_B, reference_B, _ = rows(inputs)
    return implicit_rewards(policy_B, reference_B, beta=inputs["beta"]).detach()


def mean_of(values_B: Tensor, labels_B: Tensor, label: int) -> float:
    return values_B[labels_B == label].mean().item()


def loss_and_grad(
    sums: LossSums, policy_B: Tensor, *, totals: tuple[float, float], gains: tuple[float, float]
) -> tuple[float, Tensor]:
    loss = window_loss(
        sums, chosen_total=totals[0], rejected_total=totals[1], desirable_weight=gains[0], undesirable_weight=gains[1]
    )
    (grad_B,) = torch.autograd.grad(loss, policy_B, retain_graph=True)
    return loss.item(), grad_B


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def check_unpaired(case: Case, name: str, row_losses: Callable[[Tensor, Tensor], Tensor], z_ref: float = 0.0) -> None:
    """Rows, window and gradient, with TRL's one mean written as two; and what our default makes of the same rows."""
    inputs, found = case["inputs"], case["outputs"]
    policy_B, reference_B, labels_B = rows(inputs)
    a, b = inputs["desirable_weight"], inputs["undesirable_weight"]
    rewards_B = rewards(inputs)
    assert (row_losses(rewards_B, labels_B) * torch.where(labels_B == 1, a, b)).tolist() == near(found["row_losses"])
    assert mean_of(rewards_B, labels_B, 1) == near(found["mean_chosen_reward"])
    assert mean_of(rewards_B, labels_B, 0) == near(found["mean_rejected_reward"])
    sums = loss_sums(name, policy_B, reference_B, labels_B, beta=inputs["beta"], z_ref=z_ref)
    n_chosen, n_rejected = int(sums.chosen_count), int(sums.rejected_count)
    n, totals = n_chosen + n_rejected, (n_chosen, n_rejected)
    as_gains = (a * n_chosen / n, b * n_rejected / n)
    for totals_, gains in (((n, n), (a, b)), (totals, as_gains)):
        loss, grad_B = loss_and_grad(sums, policy_B, totals=totals_, gains=gains)
        assert loss == near(found["loss"])
        assert grad_B.tolist() == near_grad(found["grad"])
    default = (LOSSES[name].gain,) * 2
    ours, grad_B = loss_and_grad(sums, policy_B, totals=totals, gains=default)
    same = as_gains == default
    assert (ours == near(found["loss"])) is same
    assert (grad_B.tolist() == near_grad(found["grad"])) is same


@each("kto")
def test_kto(case: Case) -> None:
    inputs = case["inputs"]
    logratios = f64(inputs["kl_policy_logps"]) - f64(inputs["kl_ref_logps"])
    z_ref = kto_reference_point(logratios.sum().item(), len(logratios))
    assert z_ref == near(case["outputs"]["kl"])
    assert (z_ref == 0) is ("clamped" in case["name"]) is (logratios.mean().item() < 0)
    check_unpaired(case, "kto", partial(kto, beta=inputs["beta"], z_ref=z_ref), z_ref)


@each("apo_zero_unpaired")
def test_apo_zero_unpaired(case: Case) -> None:
    check_unpaired(case, "apo_zero_unpaired", apo_zero_unpaired)


def test_one_mean_and_two_agree_only_on_balanced_rows_and_steer_elsewhere_otherwise() -> None:
    cosines = {}
    for case in vectors()["apo_zero_unpaired"]["cases"]:
        policy_B, reference_B, labels_B = rows(case["inputs"])
        sums = loss_sums("apo_zero_unpaired", policy_B, reference_B, labels_B, beta=0.1)
        totals = (float(sums.chosen_count), float(sums.rejected_count))
        _, grad_B = loss_and_grad(sums, policy_B, totals=totals, gains=(0.5, 0.5))
        cosines[case["name"]] = cosine(grad_B, f64(case["outputs"]["grad"]))
    assert cosines["balanced"] == near(1.0)
    assert cosines["weighted"] > 0.999  # 3 ups and 5 downs: 1.58 x 3 against 5 is nearly half and half again
    assert cosines["unbalanced"] < 0.9  # 7 ups, 1 down, weights 1 and 1: another direction, not another scale


@each("dpo")
def test_dpo(case: Case) -> None:
    check_pairs(case, "dpo", dpo)


@each("bco_pair")
def test_bco_pair_of_trl_has_no_shift(case: Case) -> None:
    """D7: since 0.29.0 it is ours with delta 0, the paper's ablation; any other delta is another loss."""
    check_pairs(case, "bco_pair", partial(bco_pair, delta=0.0))
    chosen_P, rejected_P, _ = pairs(case["inputs"])
    delta = (chosen_P.mean() + rejected_P.mean()) / 2
    assert bco_pair(chosen_P, rejected_P, delta=delta).mean().item() != near(case["outputs"]["loss"])


def pairs(inputs: Case) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(chosen rewards, rejected rewards, the two policy columns)."""
    policies = [f64(inputs[f"policy_{side}_logps"], requires_grad=True) for side in ("chosen", "rejected")]
    references = [f64(inputs[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]
    chosen_P, rejected_P = (
        implicit_rewards(policy, reference, beta=inputs["beta"])
        for policy, reference in zip(policies, references, strict=True)
    )
    return chosen_P, rejected_P, policies


def check_pairs(case: Case, name: str, pair_losses: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Pair by pair, and as a window of rows that alternate: chosen, its rejected, ..."""
    inputs, found = case["inputs"], case["outputs"]
    chosen_P, rejected_P, policies = pairs(inputs)
    losses_P = pair_losses(chosen_P, rejected_P)
    grads = torch.autograd.grad(losses_P.mean(), policies)
    assert losses_P.tolist() == near(found["pair_losses"])
    assert losses_P.mean().item() == near(found["loss"])
    assert [grad_P.tolist() for grad_P in grads] == [near_grad(found["grad_chosen"]), near_grad(found["grad_rejected"])]
    assert (chosen_P - rejected_P).mean().item() == near(found["mean_margin"])
    references = [f64(inputs[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]
    policy_B, reference_B = (torch.stack(columns, dim=1).flatten() for columns in (policies, references))
    labels_B = torch.tensor([1, 0]).repeat(len(losses_P))
    sums = loss_sums(name, policy_B, reference_B, labels_B, beta=inputs["beta"], delta=0.0)
    totals, gains = (float(len(losses_P)),) * 2, (LOSSES[name].gain,) * 2
    loss, grad_B = loss_and_grad(sums, policy_B, totals=totals, gains=gains)
    assert loss == near(found["loss"])
    assert grad_B[0::2].tolist() == near_grad(found["grad_chosen"])
    assert grad_B[1::2].tolist() == near_grad(found["grad_rejected"])


@each("sft")
def test_sft_is_the_mean_over_tokens(case: Case) -> None:
    """TRL's fused head against our chunks and sums, value and gradient; and a mean over rows is not the same."""
    inputs, found = case["inputs"], case["outputs"]
    head = f64(inputs["head"], requires_grad=True)
    ids, mask = torch.tensor(inputs["input_ids"]), torch.tensor(inputs["completion_mask"])
    states, targets, row_of_token = scored_tokens(f64(inputs["hidden_states"]), ids, mask)
    logps = chunked_logps(states, head, targets, chunk_size=3)
    logps_B = sum_by_row(logps, row_of_token, len(ids))
    sums = loss_sums("sft", logps_B, torch.zeros_like(logps_B), torch.ones(len(ids)), beta=0.1)
    weight, tokens = LOSSES["sft"].sft_weight, len(targets)
    loss = window_loss(sums, chosen_total=len(ids), rejected_total=0, sft_weight=weight, sft_tokens=tokens)
    (grad,) = torch.autograd.grad(loss, head)
    assert loss.item() == near(found["loss"])
    assert grad.ravel().tolist() == near_grad(f64(found["head_grad"]).ravel().tolist())
    by_row = [-logps[row_of_token == row].mean().item() for row in range(len(ids))]
    assert sum(by_row) / len(by_row) != near(found["loss"])


def sums_at(batch: Case, delta: float) -> tuple[Tensor, LossSums]:
    policy_B, reference_B, labels_B = rows(batch)
    return policy_B, bco_loss(policy_B, reference_B, labels_B, beta=batch["beta"], delta=delta)


def both_means(batch: Case, delta: float) -> tuple[float, Tensor]:
    """Our loss of one batch as a whole window, and its gradient."""
    policy_B, sums = sums_at(batch, delta)
    totals = (float(sums.chosen_count), float(sums.rejected_count))
    return loss_and_grad(sums, policy_B, totals=totals, gains=(0.5, 0.5))


def observed(shift: RewardShift, batch: Case) -> RewardShift:
    return shift.advance(RewardShift.observe(rewards(batch), torch.tensor(batch["labels"])))


def test_bco_agrees_on_one_balanced_window() -> None:
    inputs, (found,) = bco_case("one balanced batch")
    (batch,) = inputs["batches"]
    delta = observed(RewardShift(), batch).delta
    assert delta == near(found["delta"])
    row_losses_B = bco_row_losses(rewards(batch), torch.tensor(batch["labels"]), delta=delta)
    assert row_losses_B.tolist() == near(found["row_losses"])
    loss, grad_B = both_means(batch, delta)
    assert loss == near(found["loss"])
    assert grad_B.tolist() == near_grad(found["grad"])


def test_bco_agrees_on_balanced_windows_that_are_never_forgotten() -> None:
    inputs, found = bco_case("balanced batches in a row")
    shift = RewardShift(half_life_rows=math.inf)
    for batch, step in zip(inputs["batches"], found, strict=True):
        shift = observed(shift, batch)
        loss, grad_B = both_means(batch, shift.delta)
        assert shift.delta == near(step["delta"])
        assert loss == near(step["loss"])
        assert grad_B.tolist() == near_grad(step["grad"])


def test_d1_trl_takes_delta_from_all_rows_alike() -> None:
    inputs, (found,) = bco_case("one unbalanced batch")
    (batch,) = inputs["batches"]
    rewards_B, labels_B = rewards(batch), torch.tensor(batch["labels"])
    ours = observed(RewardShift(), batch).delta
    assert found["delta"] == near(rewards_B.mean().item())
    assert ours == near((mean_of(rewards_B, labels_B, 1) + mean_of(rewards_B, labels_B, 0)) / 2)
    assert abs(found["delta"] - mean_of(rewards_B, labels_B, 1)) < abs(ours - mean_of(rewards_B, labels_B, 1))
    assert abs(ours - found["delta"]) > 0.01


def test_d2_trl_never_forgets() -> None:
    inputs, found = bco_case("balanced batches in a row")
    for half_life_rows in (8.0, 512.0):
        shift = RewardShift(half_life_rows=half_life_rows)
        for batch in inputs["batches"]:
            shift = observed(shift, batch)
        now = rewards(inputs["batches"][-1]).mean().item()
        assert abs(shift.delta - now) < abs(found[-1]["delta"] - now) - 1e-3


def test_d3_accumulation_changes_what_trl_computes_and_not_what_we_do() -> None:
    inputs, found = bco_case("the unbalanced batch in four")
    whole, (at_once,) = bco_case("one unbalanced batch")
    assert len({round(step["delta"], 6) for step in found}) == 4
    accumulated = torch.cat([f64(step["grad"]) for step in found]) / 4
    off = (accumulated - f64(at_once["grad"])).norm() / f64(at_once["grad"]).norm()
    assert off > 0.01
    delta = observed(RewardShift(), whole["batches"][0]).delta
    parts = [sums_at(batch, delta) for batch in inputs["batches"]]
    sums = functools.reduce(LossSums.__add__, (part for _, part in parts))
    assert RewardShift().advance(sums.shift_sums()).delta == near(delta)
    loss, grad_B = both_means(whole["batches"][0], delta)
    totals = {"chosen_total": float(sums.chosen_count), "rejected_total": float(sums.rejected_count)}
    together = torch.stack([window_loss(part, **totals) for _, part in parts]).sum()
    grads = torch.autograd.grad(together, [policy_B for policy_B, _ in parts])
    assert together.item() == near(loss)
    assert torch.cat(grads).tolist() == near_grad(grad_B.tolist())


def test_d4_trl_takes_one_mean_over_all_rows() -> None:
    inputs, (found,) = bco_case("one unbalanced batch")
    (batch,) = inputs["batches"]
    policy_B, sums = sums_at(batch, found["delta"])
    n_chosen, n_rejected = float(sums.chosen_count), float(sums.rejected_count)
    n = n_chosen + n_rejected
    loss, grad_B = loss_and_grad(sums, policy_B, totals=(n, n), gains=(1.0, 1.0))
    assert loss == near(found["loss"])
    assert grad_B.tolist() == near_grad(found["grad"])
    loss, grad_B = both_means(batch, found["delta"])
    assert loss != near(found["loss"])
    assert cosine(grad_B, f64(found["grad"])) < 0.95
    labels_B = torch.tensor(batch["labels"])
    share = [grad[labels_B == 0].abs().sum() / grad.abs().sum() for grad in (f64(found["grad"]), grad_B)]
    assert share[0] < share[1]  # the three thumbs-down among thirteen thumbs-up


def test_d6_trl_leaves_its_matching_weights_at_any_mean() -> None:
    inputs, (found,) = bco_case("matched")
    (batch,), (_, (unmatched,)) = inputs["batches"], bco_case("one balanced batch")
    labels_B = torch.tensor(batch["labels"])
    ratio = partial(density_ratio, inputs["p_up"], n_chosen=4, n_rejected=4, balanced=True)
    trl, ours = ratio(normalise="none"), ratio(normalise="mean")
    factors_B = torch.ones(len(labels_B), dtype=torch.float64)
    factors_B[labels_B == 0] = torch.from_numpy(trl)
    assert (f64(unmatched["row_losses"]) * factors_B).tolist() == near(found["row_losses"])
    assert trl.mean() > 3
    assert ours.mean() == near(1.0)
