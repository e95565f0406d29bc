"""Labels of which some are presumed wrong: the likelihood under that, on rows and on pairs."""

from __future__ import annotations

import math

import pytest
import torch

from bco_ray.config.spec import NOISE_TAKERS
from bco_ray.objective import LOSSES, bco_row_losses, dpo, loss_sums
from bco_ray.objective.loss import label_losses

NOISE = 0.2
REWARDS = torch.linspace(-6, 6, 25, dtype=torch.float64)
LABELS = torch.arange(25) % 3 == 0
NOISY = [name for name, kind in LOSSES.items() if kind.likelihood]
REFERENCE = torch.tensor([-20.0, -30.0, -25.0, -40.0])
POLICY = torch.tensor([-18.0, -33.0, -27.0, -39.0])
PAIRS = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("name", NOISY)
def test_no_noise_changes_no_bit(name: str) -> None:
    plain, noisy = (
        loss_sums(name, POLICY, REFERENCE, PAIRS, beta=0.1, delta=0.1, **more) for more in ({}, {"label_noise": 0.0})
    )
    assert torch.equal(plain.to_vector(), noisy.to_vector())
    presumed = loss_sums(name, POLICY, REFERENCE, PAIRS, beta=0.1, delta=0.1, label_noise=NOISE)
    assert not torch.equal(plain.chosen_loss_sum, presumed.chosen_loss_sum)
    assert torch.equal(plain.chosen_reward_sum, presumed.chosen_reward_sum)


def test_values_and_slopes_are_those_of_the_likelihood() -> None:
    margins = REWARDS.clone().requires_grad_()
    losses = label_losses(margins, NOISE)
    right = torch.sigmoid(REWARDS)
    chance = (1 - NOISE) * right + NOISE * (1 - right)
    torch.testing.assert_close(losses.detach(), -chance.log())
    (slopes,) = torch.autograd.grad(losses.sum(), margins)
    torch.testing.assert_close(slopes, -(1 - 2 * NOISE) * right * (1 - right) / chance)


def test_labels_and_rewards_that_change_sides_change_nothing() -> None:
    first = bco_row_losses(REWARDS, LABELS, delta=0.3, label_noise=NOISE)
    torch.testing.assert_close(first, bco_row_losses(-REWARDS, ~LABELS, delta=-0.3, label_noise=NOISE))


def test_a_row_far_on_the_wrong_side_has_a_bounded_loss_and_lets_go() -> None:
    margins = torch.tensor([-1e4, -50.0, 50.0, 1e4], requires_grad=True)
    losses = label_losses(margins, NOISE)
    ends = [-math.log(NOISE)] * 2 + [-math.log(1 - NOISE)] * 2
    assert losses.tolist() == pytest.approx(ends)
    assert torch.autograd.grad(losses.sum(), margins)[0].tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_the_least_loss_on_noisy_labels_is_at_the_margin_of_the_right_ones() -> None:
    """Of answers that 80 % like, 0.8 * 0.8 + 0.2 * 0.2 = 68 % of the votes say so."""
    margins = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    seen = 0.8 * (1 - NOISE) + 0.2 * NOISE
    risk = seen * label_losses(margins, NOISE) + (1 - seen) * label_losses(-margins, NOISE)
    assert margins[risk.argmin()].item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-3)
    plain = seen * label_losses(margins) + (1 - seen) * label_losses(-margins)
    assert margins[plain.argmin()].item() == pytest.approx(math.log(seen / (1 - seen)), abs=1e-3)


def test_a_pair_may_be_the_wrong_way_round() -> None:
    won, lost = torch.tensor([0.4, -1.0]), torch.tensor([-0.2, 2.0])
    torch.testing.assert_close(dpo(won, lost, label_noise=NOISE), label_losses(won - lost, NOISE))
    sums = loss_sums("dpo", POLICY, REFERENCE, PAIRS, beta=0.1, label_noise=NOISE)
    rewards = 0.1 * (POLICY - REFERENCE)
    expected = dpo(rewards[0::2], rewards[1::2], label_noise=NOISE).sum()
    assert sums.chosen_loss_sum.item() == pytest.approx(expected.item())
    assert sums.rejected_loss_sum == 0


def test_the_pull_that_is_reported_is_that_of_the_noisy_loss() -> None:
    sums = loss_sums("bco", POLICY, REFERENCE, PAIRS, beta=0.1, delta=0.0, label_noise=NOISE)
    margins = (0.1 * (POLICY - REFERENCE))[PAIRS].double()
    right = torch.sigmoid(margins)
    slopes = (1 - 2 * NOISE) * right * (1 - right) / ((1 - NOISE) * right + NOISE * (1 - right))
    assert sums.chosen_pull_sum.item() == pytest.approx(slopes.sum().item(), rel=1e-5)


def test_the_spec_takes_it_for_the_same_losses() -> None:
    assert set(NOISE_TAKERS) == set(NOISY)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - set(NOISY)))
def test_losses_that_are_no_likelihoods_refuse_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no likelihood of labels"):
        loss_sums(name, POLICY, REFERENCE, PAIRS, beta=0.1, label_noise=NOISE)


@pytest.mark.parametrize("share", [-0.1, 0.5, math.nan])
def test_a_share_must_be_less_than_half(share: float) -> None:
    with pytest.raises(ValueError, match="below 0.5"):
        loss_sums("bco", POLICY, REFERENCE, PAIRS, beta=0.1, label_noise=share)
