"""The switch: every loss on the same rows, through the same sums."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bco_ray.objective import LOSSES, LossSums, bco_loss, dpo, loss_sums, window_loss

REFERENCE = torch.tensor([-20.0, -30.0, -25.0, -40.0], dtype=torch.float64)
LABELS = torch.tensor([True, False, True, False])
"""Two pairs."""


def policy() -> Tensor:
    return torch.tensor([-18.0, -33.0, -27.0, -39.0], dtype=torch.float64, requires_grad=True)


def sums_of(name: str, logps: Tensor, **more: object) -> LossSums:
    return loss_sums(name, logps, REFERENCE, LABELS, beta=0.1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_at_step_zero_every_row_pulls_where_it_should(name: str) -> None:
    logps = REFERENCE.clone().requires_grad_()
    kind = LOSSES[name]
    totals = {"chosen_total": 2, "rejected_total": 2, "sft_tokens": 10}
    loss = window_loss(sums_of(name, logps), **totals, desirable_weight=kind.gain, undesirable_weight=kind.gain,
                       sft_weight=kind.sft_weight)  # fmt: skip
    (slope,) = torch.autograd.grad(loss, logps)
    assert (slope[LABELS] < 0).all()
    assert (slope[~LABELS] == 0).all() if name == "sft" else (slope[~LABELS] > 0).all()
    start = {"bco": math.log(2), "bce": math.log(2), "dpo": math.log(2), "bco_pair": 2 * math.log(2), "kto": 0.5,
             "apo_zero_unpaired": 0.5, "sft": 45 / 10}  # fmt: skip
    assert loss.item() == pytest.approx(start[name])


def test_dpo_is_the_mean_over_pairs_and_wins_count_for_both_rows() -> None:
    logps = policy()
    sums = sums_of("dpo", logps)
    rewards = 0.1 * (logps - REFERENCE)
    expected = dpo(rewards[0::2], rewards[1::2]).mean()
    loss = window_loss(sums, chosen_total=2, rejected_total=2, desirable_weight=1.0, undesirable_weight=1.0)
    assert loss.item() == pytest.approx(expected.item())
    assert sums.chosen_correct_count == sums.rejected_correct_count == 1, "the first pair is won, the second lost"
    torch.testing.assert_close(torch.autograd.grad(loss, logps), torch.autograd.grad(expected, logps))


def test_bco_pair_is_bco_on_rows_that_come_in_pairs() -> None:
    logps = policy()
    assert torch.equal(
        sums_of("bco_pair", logps, delta=0.3).to_vector(),
        bco_loss(logps, REFERENCE, LABELS, beta=0.1, delta=0.3).to_vector(),
    )


def test_the_sft_anchor_is_minus_the_mean_logp_of_liked_tokens() -> None:
    logps = policy()
    sums = sums_of("bco", logps)
    totals = {"chosen_total": 2, "rejected_total": 2}
    extra = window_loss(sums, **totals, sft_weight=0.3, sft_tokens=9) - window_loss(sums, **totals)
    assert extra.item() == pytest.approx(0.3 * (18 + 27) / 9)
    assert torch.autograd.grad(extra, logps)[0].tolist() == pytest.approx([-0.3 / 9, 0, -0.3 / 9, 0])


def test_pulls_and_errors_are_what_they_say() -> None:
    logps = policy()
    sums = sums_of("bco", logps, delta=0.05)
    rewards = (0.1 * (logps - REFERENCE)).detach()
    side = torch.where(LABELS, rewards - 0.05, 0.05 - rewards)
    assert sums.chosen_pull_sum.item() == pytest.approx(torch.sigmoid(-side[LABELS]).sum().item())
    assert sums.rejected_pull_sum.item() == pytest.approx(torch.sigmoid(-side[~LABELS]).sum().item())
    assert sums.chosen_error_sum.item() == pytest.approx(torch.exp(-side[LABELS]).sum().item())
    assert sums.rejected_error_sum.item() == pytest.approx(torch.exp(-side[~LABELS]).sum().item())


def test_kto_counts_a_row_right_beyond_its_reference_point() -> None:
    logps = policy()
    sums = sums_of("kto", logps, z_ref=5.0)
    rewards = (0.1 * (logps - REFERENCE)).detach()
    expected = 1 - torch.sigmoid(rewards[LABELS] - 0.5)
    assert sums.chosen_loss_sum.item() == pytest.approx(expected.sum().item())
    assert sums.chosen_correct_count == 0
    assert F.relu(rewards[LABELS] - 0.5).sum() == 0
