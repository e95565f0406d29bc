"""The BCO loss of one micro-batch, as sums and counts per class; means are taken once, over the whole window.

Shapes: B rows of a micro-batch. A window is every valid row used for one optimiser step, over all micro-batches and
data-parallel workers. Log-probabilities, rewards and losses are in nats, float32 at least, float64 if given so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bco_ray.objective.shift import ShiftSums

RowLosses = Callable[[Tensor, Tensor], Tensor]
"""(rewards_B, labels_B) -> losses_B, each row on its own."""


@dataclass(frozen=True, eq=False)
class LossSums:
    """What one micro-batch adds to its window: 0-d tensors. `+` merges, in any order and grouping.

    Gradient flows through the three loss sums only; all others are detached float64.
    A row is correct when its reward lies on its label's side of delta (strictly). Its pull is |d loss / d reward|,
    its error what it adds to `error_term` (e^-(r - delta) or e^(r - delta)).
    """

    chosen_loss_sum: Tensor
    rejected_loss_sum: Tensor
    sft_loss_sum: Tensor
    """Weight times -log pi(y given x) over thumbs-up rows: the SFT loss before its mean over tokens."""
    chosen_count: Tensor
    rejected_count: Tensor
    chosen_weight_sum: Tensor
    rejected_weight_sum: Tensor
    chosen_weight_square_sum: Tensor
    rejected_weight_square_sum: Tensor
    chosen_reward_sum: Tensor
    rejected_reward_sum: Tensor
    chosen_reward_square_sum: Tensor
    rejected_reward_square_sum: Tensor
    chosen_logps_sum: Tensor
    rejected_logps_sum: Tensor
    chosen_correct_count: Tensor
    rejected_correct_count: Tensor
    chosen_pull_sum: Tensor
    rejected_pull_sum: Tensor
    chosen_error_sum: Tensor
    rejected_error_sum: Tensor
    non_finite_count: Tensor
    """Valid rows that spoil the step: loss or reward NaN or infinite, or a label that is neither 0 nor 1."""

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(mine + theirs for mine, theirs in zip(self._tensors(), other._tensors(), strict=True)))

    def to_vector(self) -> Tensor:
        """All sums as one detached float64 vector in field order: what one all_reduce(SUM) carries."""
        return torch.stack([tensor.detach().double() for tensor in self._tensors()])

    @classmethod
    def from_vector(cls, vector: Tensor) -> LossSums:
        """The inverse of `to_vector`, without gradient."""
        return cls(*vector.detach().double().unbind())

    @classmethod
    def zero(cls, device: torch.device | str | None = None) -> LossSums:
        """The sums of no rows: where a window starts."""
        return cls.from_vector(torch.zeros(len(fields(cls)), dtype=torch.float64, device=device))

    def shift_sums(self) -> ShiftSums:
        """The four numbers `RewardShift.advance` takes. Waits for the device once."""
        four = (self.chosen_reward_sum, self.chosen_count, self.rejected_reward_sum, self.rejected_count)
        return ShiftSums(*torch.stack(four).tolist())

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def bco_loss(
    policy_logps_B: Tensor,
    reference_logps_B: Tensor,
    labels_B: Tensor,
    *,
    beta: float,
    delta: float | Tensor,
    weights_B: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossSums:
    """Sums of w * -log sigmoid(s * (r - delta)) and of what delta and the metrics need (eq. 8 before its two means).

    `labels_B` bool or 0/1. A row with valid 0 has no influence on any number or gradient, whatever it holds.
    `delta` (`RewardShift.delta`), the reference and the weights are constants. Raises ValueError on unequal shapes.
    """
    return unpaired_loss(
        policy_logps_B,
        reference_logps_B,
        labels_B,
        row_losses=partial(bco_row_losses, delta=delta),
        beta=beta,
        delta=delta,
        weights_B=weights_B,
        valid_B=valid_B,
    )


def unpaired_loss(
    policy_logps_B: Tensor,
    reference_logps_B: Tensor,
    labels_B: Tensor,
    *,
    row_losses: RowLosses,
    beta: float,
    delta: float | Tensor,
    weights_B: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossSums:
    """`bco_loss` with another loss per row (see `losses`); `delta` then only splits correct rows from wrong ones.

    It may be one number per row (B,), as for pairs, where a row's opponent is what it is measured by.
    """
    valid_B = torch.ones_like(labels_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    weights_B = torch.ones_like(labels_B, dtype=torch.float32) if weights_B is None else weights_B.detach()
    _refuse_unequal_shapes(policy_logps_B, reference_logps_B, labels_B, weights_B, valid_B)
    policy_B, reference_B, weights_B = (
        torch.where(valid_B, x_B, 0) for x_B in (policy_logps_B, reference_logps_B, weights_B)
    )
    rewards_B = implicit_rewards(policy_B, reference_B, beta=beta)
    weights_B = weights_B.to(rewards_B.dtype)
    losses_B = weights_B * row_losses(rewards_B, labels_B)
    chosen_B, rejected_B = valid_B & (labels_B == 1), valid_B & (labels_B == 0)
    usable_B = (chosen_B | rejected_B) & torch.isfinite(losses_B) & torch.isfinite(rewards_B)
    sums = [torch.where(rows_B, losses_B, 0).sum() for rows_B in (chosen_B, rejected_B)]
    sums.append(torch.where(chosen_B, -weights_B * policy_B.to(rewards_B.dtype), 0).sum())
    pulls_B = weights_B * _pulls(rewards_B, labels_B, row_losses)
    sums += _detached_sums(rewards_B, policy_B, weights_B, pulls_B, chosen_B, rejected_B, delta)
    sums.append((valid_B & ~usable_B).sum().double())
    return LossSums(*sums)


def implicit_rewards(policy_logps_B: Tensor, reference_logps_B: Tensor, *, beta: float) -> Tensor:
    """r = beta * (log pi - log ref), float32 or wider. Exactly 0 where the two are equal; no gradient to the reference.

    Log-probabilities must arrive in float32: in bfloat16 a sequence's sum has already lost whole nats.
    """
    dtype = torch.promote_types(policy_logps_B.dtype, torch.float32)
    return beta * (policy_logps_B.to(dtype) - reference_logps_B.detach().to(dtype))


def bco_row_losses(rewards_B: Tensor, labels_B: Tensor, *, delta: float | Tensor, label_noise: float = 0.0) -> Tensor:
    """-log sigmoid(r - delta) for label 1, -log sigmoid(delta - r) for label 0; finite for every finite r."""
    margins_B = rewards_B - _constant(delta)
    return label_losses(torch.where(labels_B == 1, margins_B, -margins_B), label_noise)


def label_losses(margins: Tensor, label_noise: float = 0.0) -> Tensor:
    """-log of the chance of a label whose margin is m (towards it: above 0), where a share e of labels is wrong:
    -log((1 - e) sigmoid(m) + e sigmoid(-m)), 0 <= e < 0.5.

    Likelihood under symmetric noise (arXiv 1609.03683, forward correction; for preferences 1706.03741): at its least it
    has found the margins of the right labels, and it never exceeds -log e, so that a row far on the wrong side pulls
    no more. Delta stays eq. 7 of the labels as they are: with classes of one size noise draws both means to the middle
    and leaves their half-sum where it is; otherwise it moves towards the larger class, and so does the boundary of the
    labels that the loss is given.
    """
    if not label_noise:
        return -F.logsigmoid(margins)
    right, wrong = math.log1p(-label_noise), math.log(label_noise)
    return -torch.logaddexp(right + F.logsigmoid(margins), wrong + F.logsigmoid(-margins))


def window_loss(
    sums: LossSums,
    *,
    chosen_total: float,
    rejected_total: float,
    desirable_weight: float = 0.5,
    undesirable_weight: float = 0.5,
    sft_weight: float = 0.0,
    sft_tokens: float = 0.0,
) -> Tensor:
    """This micro-batch's share of the window's two-mean loss; the shares of a window add up to its loss.

    The totals are those of the **whole window** (rows per class, or weights per class for the self-normalised form),
    known before the first backward. A class with total 0 contributes 0, never NaN. Where an engine averages
    gradients over workers, the caller multiplies by the number of workers (and does not divide by micro-batches).
    Weights 1 and 1 give the paper's eq. 8. `sft_weight` times the mean of -log p over the window's `sft_tokens`
    thumbs-up tokens is added. Raises ValueError on a negative or NaN total.
    """
    chosen = sums.chosen_loss_sum * _reciprocal(chosen_total)
    rejected = sums.rejected_loss_sum * _reciprocal(rejected_total)
    loss = desirable_weight * chosen + undesirable_weight * rejected
    return loss + sft_weight * _reciprocal(sft_tokens) * sums.sft_loss_sum if sft_weight else loss


def _pulls(rewards_B: Tensor, labels_B: Tensor, row_losses: RowLosses) -> Tensor:
    """|d loss / d reward| of each row, from the loss itself."""
    with torch.enable_grad():
        leaves_B = rewards_B.detach().requires_grad_()
        losses_B = row_losses(leaves_B, labels_B)
        if not losses_B.requires_grad:
            return torch.zeros_like(leaves_B)
        (slopes_B,) = torch.autograd.grad(losses_B.sum(), leaves_B)
    return slopes_B.abs()


def _detached_sums(
    rewards_B: Tensor,
    logps_B: Tensor,
    weights_B: Tensor,
    pulls_B: Tensor,
    chosen_B: Tensor,
    rejected_B: Tensor,
    delta: float | Tensor,
) -> list[Tensor]:
    """The fields of LossSums from chosen_count to rejected_error_sum, in their order."""
    rewards_B = rewards_B.detach()
    side_B = rewards_B.double() - _constant(delta)
    correct_B = torch.where(chosen_B, side_B > 0, side_B < 0)
    errors_B = torch.where(chosen_B, -side_B, side_B).clamp(max=600).exp()  # saturates, far beyond any use
    columns = (torch.ones_like(side_B), weights_B, weights_B.double().square(), rewards_B,
               rewards_B.double().square(), logps_B.detach(), correct_B, pulls_B, errors_B)  # fmt: skip
    columns_KB = torch.stack([column_B.double() for column_B in columns])
    sums_K2 = torch.stack([torch.where(rows_B, columns_KB, 0).sum(1) for rows_B in (chosen_B, rejected_B)], dim=1)
    return list(sums_K2.flatten().unbind())


def _constant(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value


def _reciprocal(total: float) -> float:
    if not total >= 0:
        raise ValueError(f"a window's total per class must be 0 or more, got {total}")
    return 1 / total if total > 0 else 0.0


def _refuse_unequal_shapes(first: Tensor, *others: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (first, *others)]
    if first.dim() != 1 or len(set(shapes)) > 1:
        raise ValueError(f"policy, reference, labels, weights and valid must all have one shape (B,), got {shapes}")
