"""One optimizer step on one window: forward and backward per micro-batch, one all-reduce of sums, update.

The whole algorithm is here and reads top to bottom; nothing in it depends on how many workers there are, and nothing
of ours in it waits for the device (DeepSpeed looks at the gradients' overflow itself). Shapes: B rows of a
micro-batch, W rows of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bco_ray.objective import LOSSES, Loss, LossSums, ShiftTensor, implicit_rewards, loss_sums, window_loss
from bco_ray.training.batches import MicroBatch, WindowBatches, WindowTotals
from bco_ray.training.engine import Engine
from bco_ray.training.gang import Gang
from bco_ray.training.reference import Reference

_SUMS = len(fields(LossSums))
_SHIFT_SUMS = ("chosen_reward_sum", "chosen_count", "rejected_reward_sum", "rejected_count")


@dataclass(frozen=True)
class Objective:
    """The loss and its numbers. `sft_weight`: of the mean -log p of thumbs-up tokens, added to any loss.

    `label_noise`: share of labels presumed wrong.
    """

    beta: float
    desirable_weight: float
    undesirable_weight: float
    loss: str = "bco"
    sft_weight: float = 0.0
    label_noise: float = 0.0

    @property
    def kind(self) -> Loss:
        """What the loop has to know of the loss."""
        return LOSSES[self.loss]

    def of_window(self, sums: LossSums, totals: WindowTotals) -> Tensor:
        """The share of the window's loss that these sums are."""
        return window_loss(
            sums,
            chosen_total=totals.chosen,
            rejected_total=totals.rejected,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            sft_weight=self.kind.sft_weight + self.sft_weight,
            sft_tokens=totals.sft_tokens,
        )


@dataclass(frozen=True)
class StepResult:
    """What a step did, still on the device: the next shift, and the numbers to be read later (`StepNumbers`)."""

    shift: ShiftTensor
    numbers: Tensor


@dataclass(frozen=True)
class StepNumbers:
    """The same numbers on every worker. `sums` and `rewards_W` are over all of them.

    `grad_norm` None: not finite, nothing was updated. `z_ref`: KTO's reference point, 0 for other losses. `asked`: how
    many workers had been asked to stop.
    """

    sums: LossSums
    rewards_W: Tensor
    delta: float
    z_ref: float
    grad_norm: float | None
    asked: int = 0

    @classmethod
    def read(cls, numbers: Tensor) -> StepNumbers:
        """From `StepResult.numbers`, on the host."""
        asked, delta, z_ref, norm = numbers[-4:].tolist()
        sums, rewards_W = LossSums.from_vector(numbers[:_SUMS]), numbers[_SUMS:-4]
        return cls(sums, rewards_W, delta, z_ref, norm if math.isfinite(norm) else None, int(asked))


def train_window(
    engine: Engine,
    gang: Gang,
    reference: Reference,
    window: WindowBatches,
    shift: ShiftTensor,
    objective: Objective,
    *,
    asked: bool = False,
) -> StepResult:
    """Train on one window. Every worker calls this with its own micro-batches, the same number everywhere.

    `asked`: whether this worker has been asked to stop, which the others learn from the step's numbers.

    Delta is the shift's value from before the window (lagged timing): one number for all rows of the step, less the
    constant of a row's source where sources have deltas of their own. A row whose loss is not finite makes the gradient
    NaN on purpose, so that every worker's engine refuses the update alike.
    """
    delta = shift.delta if objective.kind.shifted else torch.zeros_like(shift.delta)
    z_ref = reference_point(engine, gang, reference, window.mismatched) if objective.kind.mismatched else delta * 0
    size = len(window.totals.labels_W)
    local_sums = LossSums.zero(engine.device).to_vector()
    local_rewards = torch.zeros(size + 1, dtype=torch.float64, device=engine.device)
    for host_batch in window.batches:
        batch = host_batch.to(engine.device)
        reference_logps_B = reference(batch)
        policy_logps_B = engine.forward(batch.pack)
        sums = loss_sums(
            objective.loss,
            policy_logps_B,
            reference_logps_B,
            batch.labels_B,
            beta=objective.beta,
            delta=delta.float() - batch.offsets_B,
            z_ref=z_ref.float(),
            label_noise=objective.label_noise,
            weights_B=batch.weights_B,
            valid_B=batch.valid_B,
        )
        loss = objective.of_window(sums, window.totals)
        engine.backward(loss * gang.size * _one_or_nan(sums.non_finite_count))
        local_sums = local_sums + sums.to_vector()
        rewards_B = implicit_rewards(policy_logps_B.detach(), reference_logps_B, beta=objective.beta)
        local_rewards = local_rewards.index_copy(0, batch.slots_B, rewards_B.double())
    totals = gang.sum(torch.cat([local_sums, local_rewards[:size], local_sums.new_full((1,), float(asked))]))
    grad_norm = engine.step().double()
    sums = LossSums.from_vector(totals[:_SUMS])
    four = torch.stack([getattr(sums, name) for name in _SHIFT_SUMS])
    after = shift.advance(four, unless=~torch.isfinite(grad_norm))
    return StepResult(after, torch.cat([totals, torch.stack([delta, z_ref, grad_norm])]))


@torch.no_grad()
def reference_point(engine: Engine, gang: Gang, reference: Reference, mismatched: Sequence[MicroBatch]) -> Tensor:
    """KTO's z: the mean log-ratio of completions under other prompts, over the whole window, at least 0. 0-d."""
    local = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for host_batch in mismatched:
        batch = host_batch.to(engine.device)
        ratios_B = (engine.forward(batch.pack) - reference(batch)).double()
        local[0] += torch.where(batch.valid_B, ratios_B, 0).sum()
        local[1] += batch.valid_B.sum()
    total = gang.sum(local)
    return (total[0] / total[1].clamp(min=1)).clamp(min=0)


def _one_or_nan(non_finite_count: Tensor) -> Tensor:
    """A factor that leaves a good loss alone and spoils a bad one, without asking the device."""
    return torch.where(non_finite_count > 0, math.nan, 1.0)
