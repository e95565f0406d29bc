"""One optimizer step on one window: forward and backward per micro-batch, one all-reduce of sums, update.

The whole algorithm is here and reads top to bottom; nothing in it depends on how many workers there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bco_ray.objective import LossSums, RewardShift, bco_loss, window_loss
from bco_ray.training.batches import MicroBatch
from bco_ray.training.engine import Engine
from bco_ray.training.gang import Gang


@dataclass(frozen=True)
class Objective:
    """The numbers of the loss. `shifted` False is BCE: delta stays 0."""

    beta: float
    shifted: bool
    desirable_weight: float
    undesirable_weight: float


@dataclass(frozen=True)
class WindowTotals:
    """Rows per class of the whole window, over all workers: from the plan, before the first forward."""

    chosen: int
    rejected: int


@dataclass(frozen=True)
class StepResult:
    """What a step did. `sums` are over all workers; `grad_norm` None: not finite, nothing was updated."""

    loss: float
    delta: float
    sums: LossSums
    grad_norm: float | None
    shift: RewardShift


def train_window(
    engine: Engine,
    gang: Gang,
    micro_batches: Sequence[MicroBatch],
    totals: WindowTotals,
    shift: RewardShift,
    objective: Objective,
) -> StepResult:
    """Train on one window. Every worker calls this with its own micro-batches, the same number everywhere.

    Delta is the shift's value from before the window (lagged timing): one number for all rows of the step. A row whose
    loss is not finite makes the gradient NaN on purpose, so that every worker's engine refuses the update alike.
    """
    delta = shift.delta if objective.shifted else 0.0
    local = LossSums.zero(engine.device).to_vector()
    for batch in micro_batches:
        sums = _forward(engine, batch.to(engine.device), delta, objective)
        loss = window_loss(
            sums,
            chosen_total=totals.chosen,
            rejected_total=totals.rejected,
            desirable_weight=objective.desirable_weight,
            undesirable_weight=objective.undesirable_weight,
        )
        engine.backward(loss * gang.size * _one_or_nan(sums.non_finite_count))
        local = local + sums.to_vector()
    window = LossSums.from_vector(gang.sum(local))
    grad_norm = engine.step()
    updated = grad_norm is not None
    return StepResult(
        _loss_value(window, totals, objective),
        delta,
        window,
        grad_norm,
        shift.advance(window.shift_sums()) if updated else shift,
    )


def _forward(engine: Engine, batch: MicroBatch, delta: float, objective: Objective) -> LossSums:
    return bco_loss(
        engine.forward(batch),
        batch.reference_logps_B,
        batch.labels_B,
        beta=objective.beta,
        delta=delta,
        weights_B=batch.weights_B,
        valid_B=batch.valid_B,
    )


def _one_or_nan(non_finite_count: Tensor) -> Tensor:
    """A factor that leaves a good loss alone and spoils a bad one, without asking the device."""
    return torch.where(non_finite_count > 0, math.nan, 1.0)


def _loss_value(window: LossSums, totals: WindowTotals, objective: Objective) -> float:
    return window_loss(
        window,
        chosen_total=totals.chosen,
        rejected_total=totals.rejected,
        desirable_weight=objective.desirable_weight,
        undesirable_weight=objective.undesirable_weight,
    ).item()
