"""Every group of tests/data/bco-vectors.json through our functions; `test_<group>` for each, and none forgotten.

Shapes: B rows, P pairs. float64 to 1e-10, float32 to 1e-5; named wrong answers must differ from ours.
"""

import functools
import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bco_ray.objective import (
    LossSums,
    RewardShift,
    ShiftSums,
    WeightSums,
    apo_zero_unpaired,
    bce,
    bco_loss,
    bco_pair,
    bco_row_losses,
    chunked_logps,
    class_weights,
    completion_logps,
    decay_per_window,
    density_ratio,
    density_ratio_from_logits,
    dpo,
    effective_sample_size,
    error_term,
    exact_shift,
    fit_logistic,
    implicit_rewards,
    kto,
    kto_reference_point,
    mixture_weights,
    scored_tokens,
    token_logps,
    unpaired_loss,
    window_loss,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
near = functools.partial(pytest.approx, rel=1e-10, abs=1e-10)


@functools.cache
def vectors(group: str) -> Any:
    path = Path(__file__).parents[1] / "data" / "bco-vectors.json"
    return json.loads(path.read_text())[group]


def differs(ours: float, wrong: float) -> bool:
    return abs(ours - wrong) > 1e-3


def test_every_group_has_a_test() -> None:
    path = Path(__file__).parents[1] / "data" / "bco-vectors.json"
    groups = set(json.loads(path.read_text())) - {"meta"}
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert groups == tests - {"every_group_has_a_test"}
    assert len(groups) == 20


@each_dtype
def test_completion_logps(dtype: torch.dtype) -> None:
    group, tolerance = vectors("completion_logps"), TOLERANCE[dtype]
    logits, ids = torch.tensor(group["logits"], dtype=dtype), torch.tensor(group["input_ids"])
    mask, expected = torch.tensor(group["completion_mask"]), group["expected"]
    logps_B = completion_logps(logits, ids, mask)
    counts = [
        len(row) for row in (scored_tokens(logits[i : i + 1], ids[i : i + 1], mask[i : i + 1])[1] for i in (0, 1))
    ]
    assert logps_B.dtype == dtype
    assert logps_B.tolist() == pytest.approx(expected["sequence_logps"], abs=tolerance)
    assert counts == expected["completion_token_counts"]
    assert (logps_B / torch.tensor(counts)).tolist() == pytest.approx(expected["mean_token_logps"], abs=tolerance)
    states, targets, _ = scored_tokens(logits, ids, torch.ones_like(mask))
    every_token = np.array(expected["shifted_token_logps"]).ravel()
    assert token_logps(states, targets).tolist() == pytest.approx(every_token, abs=tolerance)
    head = torch.eye(logits.shape[-1], dtype=dtype)
    assert chunked_logps(states, head, targets, chunk_size=3).tolist() == pytest.approx(every_token, abs=tolerance)


def rows(inputs: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    policy_B = torch.tensor(inputs["policy_logps"], dtype=dtype, requires_grad=True)
    return policy_B, torch.tensor(inputs["ref_logps"], dtype=dtype), torch.tensor(inputs["labels"])


def sums_of(inputs: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, LossSums]:
    policy_B, reference_B, labels_B = rows(inputs, dtype)
    weights_B = torch.tensor(inputs["weights"], dtype=dtype) if "weights" in inputs else None
    valid_B = torch.tensor(inputs["valid"]) if "valid" in inputs else None
    constants = {"beta": inputs["beta"], "delta": inputs["delta"], "weights_B": weights_B, "valid_B": valid_B}
    return policy_B, bco_loss(policy_B, reference_B, labels_B, **constants)


def check_loss(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype, by_weight: bool = False) -> None:
    close = functools.partial(pytest.approx, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    policy_B, sums = sums_of(inputs, dtype)
    kind = "weight_sum" if by_weight else "count"
    chosen, rejected = (float(getattr(sums, f"{side}_{kind}")) for side in ("chosen", "rejected"))
    everyone = float(sums.chosen_count + sums.rejected_count)
    forms = {
        "class_balanced": (chosen, rejected, 0.5),
        "paper_sum": (chosen, rejected, 1.0),
        "pooled_mean": (everyone, everyone, 1.0),
    }
    for form, (chosen_total, rejected_total, gain) in forms.items():
        gains = {"desirable_weight": gain, "undesirable_weight": gain}
        loss = window_loss(sums, chosen_total=chosen_total, rejected_total=rejected_total, **gains)
        (grad_B,) = torch.autograd.grad(loss, policy_B, retain_graph=True)
        assert loss.dtype == dtype
        assert loss.item() == close(expected[f"loss_{form}"])
        assert grad_B.tolist() == close(expected[f"grad_{form}"])
    check_terms_and_rows(inputs, expected, dtype, sums, (chosen, rejected))


def check_terms_and_rows(
    inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype, sums: LossSums, totals: tuple[float, float]
) -> None:
    close = functools.partial(pytest.approx, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    policy_B, reference_B, labels_B = rows(inputs, dtype)
    rewards_B = implicit_rewards(policy_B, reference_B, beta=inputs["beta"])
    assert rewards_B.tolist() == close(expected["rewards"])
    row_losses_B = bco_row_losses(rewards_B, labels_B, delta=inputs["delta"])
    assert row_losses_B.tolist() == close(expected["per_sample_loss"])
    only = {"desirable_weight": 1.0, "undesirable_weight": 0.0}, {"desirable_weight": 0.0, "undesirable_weight": 1.0}
    for term, gains in zip(("positive_term", "negative_term"), only, strict=True):
        loss = window_loss(sums, chosen_total=totals[0], rejected_total=totals[1], **gains)
        assert loss.item() == close(expected[term])
    correct = sums.chosen_correct_count + sums.rejected_correct_count
    assert float(correct / (sums.chosen_count + sums.rejected_count)) == close(expected["accuracy"])
    assert float(sums.chosen_reward_sum / sums.chosen_count) == close(expected["mean_reward_pos"])
    if expected["mean_reward_neg"] is None:
        assert sums.rejected_count == sums.rejected_reward_sum == 0
    else:
        assert float(sums.rejected_reward_sum / sums.rejected_count) == close(expected["mean_reward_neg"])


def margins_follow(group: dict[str, Any]) -> None:
    """The signed margin of a row is the logit of e^-loss: read it back from the loss where that is well conditioned."""
    policy_B, reference_B, labels_B = rows(group["inputs"], torch.float64)
    rewards_B = implicit_rewards(policy_B, reference_B, beta=group["inputs"]["beta"])
    losses_B = bco_row_losses(rewards_B, labels_B, delta=group["inputs"]["delta"])
    assert (-torch.expm1(losses_B).log()).tolist() == near(group["expected"]["margin_signed"])


@each_dtype
def test_loss_basic(dtype: torch.dtype) -> None:
    group = vectors("loss_basic")
    check_loss(group["inputs"], group["expected"], dtype)
    margins_follow(group)


@each_dtype
def test_loss_step_zero(dtype: torch.dtype) -> None:
    group = vectors("loss_step_zero")
    check_loss(group["inputs"], group["expected"], dtype)
    margins_follow(group)


@each_dtype
@pytest.mark.parametrize("denominator", ["count", "weight_sum"])
def test_loss_weighted(dtype: torch.dtype, denominator: str) -> None:
    group = vectors("loss_weighted")
    check_loss(group["inputs"], group[f"expected_denom_{denominator}"], dtype, by_weight=denominator == "weight_sum")


@each_dtype
def test_loss_single_class(dtype: torch.dtype) -> None:
    group = vectors("loss_single_class")
    check_loss(group["inputs"], group["expected"], dtype)
    margins_follow(group)


@each_dtype
def test_loss_extreme(dtype: torch.dtype) -> None:
    group = vectors("loss_extreme")
    check_loss(group["inputs"], group["expected"], dtype)
    rewards_B = implicit_rewards(*rows(group["inputs"], dtype)[:2], beta=1.0)
    tiny = bco_row_losses(rewards_B, torch.tensor(group["inputs"]["labels"]), delta=0.0)[4:].tolist()
    assert tiny == pytest.approx(group["expected"]["per_sample_loss"][4:], rel=TOLERANCE[dtype], abs=0)


def observed(worker: dict[str, Any]) -> ShiftSums:
    rewards_B = torch.tensor(worker["rewards"], dtype=torch.float64)
    return RewardShift.observe(rewards_B, torch.tensor(worker["labels"]))


def test_delta_two_workers() -> None:
    group = vectors("delta_two_workers")
    expected, wrong = group["expected"], group["wrong_answers_to_guard_against"]
    first, second = observed(group["worker_0"]), observed(group["worker_1"])
    assert astuple(first) == near(expected["local_sums_worker_0"])
    assert astuple(second) == near(expected["local_sums_worker_1"])
    assert astuple(first.merge(second)) == near(expected["all_reduced_sums"])
    shift = RewardShift().advance(first.merge(second))
    assert [shift.chosen_mean, shift.rejected_mean] == near([expected["mean_pos"], expected["mean_neg"]])
    assert shift.delta == near(expected["delta"])
    per_worker = [RewardShift().advance(sums).delta for sums in (first, second)]
    assert per_worker == near(wrong["per_worker_deltas"])
    assert all(differs(shift.delta, answer) for answer in (*wrong.values(),) if isinstance(answer, float))


def test_delta_class_imbalance() -> None:
    group = vectors("delta_class_imbalance")
    expected = group["expected"]
    sums = observed(group["worker_0"]).merge(observed(group["worker_1"]))
    delta = RewardShift().advance(sums).delta
    assert astuple(sums) == near(expected["sums"])
    assert delta == near(expected["delta_balanced"])
    assert differs(delta, expected["delta_pooled"])
    for name, shift in (("balanced", delta), ("pooled", expected["delta_pooled"])):
        means_B = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
        labels_B = torch.tensor([1, 0])
        loss = bco_loss(means_B, torch.zeros(2), labels_B, beta=1.0, delta=shift)
        (loss.chosen_loss_sum + loss.rejected_loss_sum).backward()  # type: ignore[no-untyped-call]
        assert means_B.grad is not None
        assert -means_B.grad[0].item() == near(expected["gradient_factor_pos_at_mean"][name])
        assert means_B.grad[1].item() == near(expected["gradient_factor_neg_at_mean"][name])


@pytest.mark.parametrize("decay", ["0.9", "0.5", "0.0", "1.0"])
def test_delta_decayed_sums(decay: str) -> None:
    group = vectors("delta_decayed_sums")
    shift, pooled = RewardShift(), group["trl_pooled_cumulative_mean_after_each_step"]
    for step, expected, trl in zip(group["steps"], group[f"expected_decay_{decay}"], pooled, strict=True):
        rewards_B = torch.tensor(step["rewards_pos"] + step["rewards_neg"], dtype=torch.float64)
        labels_B = torch.tensor([1] * len(step["rewards_pos"]) + [0] * len(step["rewards_neg"]))
        window = shift.observe(rewards_B, labels_B)
        lagged, shift = shift.delta, shift.fold(window, decay=float(decay))
        assert astuple(window) == near(expected["batch_sums"])
        assert astuple(shift.sums) == near(expected["state_after"])
        means = [expected["mean_pos_after"], expected["mean_neg_after"]]
        assert [shift.chosen_mean, shift.rejected_mean] == near(means)
        assert [lagged, shift.delta] == near([expected["delta_lagged_used"], expected["delta_current_used"]])
        assert trl == 0 or differs(shift.delta, trl)


def test_delta_half_life() -> None:
    for case in vectors("delta_half_life")["cases"]:
        assert decay_per_window(case["rows_in_window"], case["half_life_rows"]) == near(case["decay"])
        half = case["rows_in_window"] / 2
        before = RewardShift(case["half_life_rows"], ShiftSums(0.0, 1.0, 0.0, 1.0), 0.0, 0.0)
        after = before.advance(ShiftSums(0.0, half, 0.0, half))
        assert after.sums.chosen_count - half == near(case["decay"])


def test_delta_bias_corrected_ema_identity() -> None:
    group = vectors("delta_bias_corrected_ema_identity")
    shift, count = RewardShift(), group["count_per_step"]
    for mean in group["batch_means"]:
        shift = shift.fold(ShiftSums(mean * count, count, 0.0, 0.0), decay=group["decay"])
    assert shift.chosen_mean == near(group["expected_mean_after_last_step"])


def test_grad_accumulation_and_ddp() -> None:
    group = vectors("grad_accumulation_and_ddp")
    inputs, expected, wrong = group["inputs"], group["expected"], group["wrong_answers_to_guard_against"]
    totals = {"chosen_total": expected["n_pos_window"], "rejected_total": expected["n_neg_window"]}
    window, averaged, means = LossSums.zero(), [], []
    for worker, losses, grads in zip(
        inputs["workers"], expected["local_scaled_losses"], expected["local_scaled_grads"], strict=True
    ):
        for micro, loss, grad in zip(worker, losses, grads, strict=True):
            constants = {"beta": inputs["beta"], "delta": inputs["delta"]}
            policy_B, sums = sums_of({**micro, **constants}, torch.float64)
            scaled = inputs["world_size"] * window_loss(sums, **totals)
            (grad_B,) = torch.autograd.grad(scaled, policy_B, retain_graph=True)
            assert scaled.item() == near(loss)
            assert grad_B.tolist() == near(grad)
            averaged += (grad_B / inputs["world_size"]).tolist()
            means.append(pooled_mean(sums))
            window += sums
    assert averaged == near(expected["single_process_grad_in_worker_then_microbatch_order"])
    ours = window_loss(window, **totals).item()
    assert ours == near(expected["window_loss"])
    assert means == near([mean for worker in wrong["microbatch_means"] for mean in worker])
    assert pooled_mean(window) == near(wrong["true_pooled_mean"])
    assert differs(ours, wrong["mean_of_microbatch_means"])
    assert differs(ours, wrong["true_pooled_mean"])


def pooled_mean(sums: LossSums) -> float:
    everyone = float(sums.chosen_count + sums.rejected_count)
    gains = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return window_loss(sums, chosen_total=everyone, rejected_total=everyone, **gains).item()


def test_theorem() -> None:
    labels_B = torch.tensor([1, 0])
    for case in vectors("theorem")["cases"]:
        rewards_B = torch.tensor([case["r_w"], case["r_l"]], dtype=torch.float64)
        best = exact_shift(rewards_B, labels_B).item()
        assert best == near(case["delta_star"])
        assert RewardShift().advance(RewardShift.observe(rewards_B, labels_B)).delta == near(case["delta_star"])
        dpo_loss = dpo(rewards_B[0], rewards_B[1]).item()
        assert dpo_loss == near(case["dpo_loss"])
        for delta, loss, gap, error in (
            (case["delta"], case["bce_loss"], case["gap"], case["error_term"]),
            (best, case["dpo_loss"] + case["min_gap"], case["min_gap"], case["min_error_term"]),
        ):
            pair = bco_pair(rewards_B[0], rewards_B[1], delta=delta).item()
            assert pair == near(loss)
            assert pair - dpo_loss == near(gap)
            assert error_term(rewards_B, labels_B, delta=delta).item() == near(error)


def test_delta_dataset_level() -> None:
    group = vectors("delta_dataset_level")
    expected = group["expected"]
    rewards_B = torch.tensor(group["rewards_pos"] + group["rewards_neg"], dtype=torch.float64)
    labels_B = torch.tensor([1] * len(group["rewards_pos"]) + [0] * len(group["rewards_neg"]))
    best, eq7 = exact_shift(rewards_B, labels_B).item(), RewardShift().advance(RewardShift.observe(rewards_B, labels_B))
    assert [best, eq7.delta] == near([expected["delta_exact"], expected["delta_eq7"]])
    errors = [error_term(rewards_B, labels_B, delta=delta).item() for delta in (best, eq7.delta, 0.0)]
    assert errors == near([expected["error_at_exact"], expected["error_at_eq7"], expected["error_at_zero"]])
    assert errors[2] == near(expected["A"] + expected["B"])
    assert math.exp(2 * best) == near(expected["B"] / expected["A"])


def test_density_ratio() -> None:
    group = vectors("density_ratio")
    p_up = np.array(group["p_up"])
    low, high = group["min_density_ratio"], group["max_density_ratio"]
    for name, counts, balanced in (
        ("expected_balanced", (100, 300), True),
        ("expected_unbalanced_100_pos_300_neg", (100, 300), False),
    ):
        expected, prior = group[name], {"n_chosen": counts[0], "n_rejected": counts[1], "balanced": balanced}
        bare = density_ratio(p_up, **prior, min_density_ratio=0.0, max_density_ratio=math.inf, normalise="none")
        assert bare == near(expected["density_ratio"])
        clamped = density_ratio(p_up, **prior, min_density_ratio=low, max_density_ratio=high, normalise="none")
        assert clamped == near(expected["clamped"])
        assert density_ratio(p_up, **prior) == near(expected["mean_normalised"])
        logits = np.log(expected["posterior_odds"])
        assert density_ratio_from_logits(logits, **prior) == near(expected["mean_normalised"])
        sums = WeightSums.of(bare, low=low, high=high)
        assert sums.mean == near(expected["mean_clamped"])
        assert [sums.effective_sample_size, sums.ess_fraction] == near(
            [expected["effective_sample_size"], expected["ess_fraction"]]
        )
        assert effective_sample_size(clamped) == near(expected["effective_sample_size"])
        assert sums.clamped_low / sums.count == near(expected["clamped_low_fraction"])
        assert sums.clamped_high / sums.count == near(expected["clamped_high_fraction"])
    check_gaussians_and_mixture(group)


def check_gaussians_and_mixture(group: dict[str, Any]) -> None:
    gaussian, mixture = group["gaussian_check"], group["mixture_target"]
    bare = {"n_chosen": 1, "n_rejected": 1, "balanced": True, "min_density_ratio": 0.0, "max_density_ratio": math.inf}
    assert density_ratio(gaussian["expected_p_up"], **bare, normalise="none") == near(gaussian["expected_ratio"])
    logits = 2 * np.array(gaussian["x"])
    assert density_ratio_from_logits(logits, **bare, normalise="none") == near(gaussian["expected_ratio"])
    assert mixture_weights(mixture["rho"], chosen=False) == near(mixture["w_neg"])
    assert mixture_weights(mixture["rho"], chosen=True) == near(mixture["w_pos"])


def test_logistic_regression_balanced() -> None:
    group = vectors("logistic_regression_balanced")
    expected, close = group["expected"], functools.partial(pytest.approx, abs=group["tolerance"])
    X, y = np.array(group["X"]), np.array(group["labels"])
    model = fit_logistic(lambda: [(X[:3], y[:3]), (X[3:], y[3:])], C=group["C"])
    assert model.coef_D == close(expected["coef"])
    assert model.intercept == close(expected["intercept"])
    logits = model.logits(X)
    assert 1 / (1 + np.exp(-logits)) == close(expected["p_up"])
    prior = {"n_chosen": 5, "n_rejected": 3, "balanced": True, "normalise": "none"}
    bare = density_ratio_from_logits(logits, **prior, min_density_ratio=0.0, max_density_ratio=math.inf)
    assert bare == pytest.approx(expected["density_ratio"], rel=group["tolerance"])
    assert density_ratio_from_logits(logits, **prior) == pytest.approx(expected["clamped_0.5_10"], rel=1e-6)


def test_class_weights() -> None:
    for case in vectors("class_weights")["cases"]:
        weights = class_weights(case["n_pos"], case["n_neg"], cap=math.inf)
        assert weights[:2] == near((case["static_weight_pos"], case["static_weight_neg"]))
        assert weights.minority_repeats == near(case["repeat_factor_minority"])
        greatest = max(case["static_weight_pos"], case["static_weight_neg"])
        capped = class_weights(case["n_pos"], case["n_neg"])
        assert capped.capped == (greatest > 20)
        assert max(capped[:2]) == near(min(greatest, 20))


@each_dtype
def test_baselines(dtype: torch.dtype) -> None:
    group = vectors("baselines")
    inputs, expected = group["inputs"], group["expected"]
    close = functools.partial(pytest.approx, abs=TOLERANCE[dtype])
    policy_B, reference_B, labels_B = rows(inputs, dtype)
    rewards_B = implicit_rewards(policy_B, reference_B, beta=inputs["beta"])
    kto_rows = functools.partial(kto, beta=inputs["beta"], z_ref=inputs["z_ref"])
    assert kto_rows(rewards_B, labels_B).tolist() == close(expected["kto_per_sample"])
    sums = unpaired_loss(policy_B, reference_B, labels_B, row_losses=kto_rows, beta=inputs["beta"], delta=0.0)
    assert pooled_mean(sums) == close(expected["kto_mean"])
    assert apo_zero_unpaired(rewards_B, labels_B).tolist() == close(expected["apo_zero_unpaired_per_sample"])
    assert bce(rewards_B, labels_B).tolist() == close(expected["bce_per_sample"])
    assert dpo(rewards_B[0], rewards_B[3]).item() == close(expected["dpo_pair_0_3"])
    mismatched = expected["kto_z_ref_from_mismatched_logratios"]
    for logratios, z_ref in (("logratios", "expected_z_ref"), ("logratios_2", "expected_z_ref_2")):
        values = mismatched[logratios]
        assert kto_reference_point(sum(values), len(values)) == near(mismatched[z_ref])


def test_bf16_pitfall() -> None:
    group = vectors("bf16_pitfall")
    policy_logp, reference_logp = group["policy_logp"], group["ref_logp"]
    for dtype, expected, tolerance in (
        (torch.float64, group["reward_float64"], 1e-10),
        (torch.float32, group["reward_float64"], 1e-5),
        (torch.bfloat16, group["reward_from_bf16_logps"], 1e-5),
    ):
        policy_B, reference_B = torch.tensor([policy_logp], dtype=dtype), torch.tensor([reference_logp], dtype=dtype)
        assert implicit_rewards(policy_B, reference_B, beta=group["beta"]).tolist() == [
            pytest.approx(expected, abs=tolerance)
        ]
    stored = torch.tensor([policy_logp, reference_logp]).bfloat16().tolist()
    assert stored == [group["policy_logp_bf16"], group["ref_logp_bf16"]]
    logits = torch.zeros(1, 400, 16, dtype=torch.bfloat16)
    ids = torch.zeros(1, 400, dtype=torch.long)
    logps_B = completion_logps(logits, ids, torch.ones_like(ids))
    assert logps_B.dtype == torch.float32
    assert logps_B.item() == pytest.approx(-399 * math.log(16), rel=1e-6)


@each_dtype
def test_padding_rows(dtype: torch.dtype) -> None:
    group = vectors("padding_rows")
    expected, close = group["expected"], functools.partial(pytest.approx, abs=TOLERANCE[dtype])
    policy_B, sums = sums_of(group["inputs"], dtype)
    loss = window_loss(sums, chosen_total=float(sums.chosen_count), rejected_total=float(sums.rejected_count))
    (grad_B,) = torch.autograd.grad(loss, policy_B)
    assert loss.item() == close(expected["loss_class_balanced"])
    assert grad_B.tolist() == close(expected["grad_class_balanced"])
    assert grad_B[3] == 0
    assert astuple(sums.shift_sums()) == close(expected["delta_sums"])
    _, reference_B, labels_B = rows(group["inputs"], dtype)
    rewards_B = implicit_rewards(policy_B, reference_B, beta=group["inputs"]["beta"])
    seen = RewardShift.observe(rewards_B, labels_B, torch.tensor(group["inputs"]["valid"]))
    assert astuple(seen) == close(expected["delta_sums"])
