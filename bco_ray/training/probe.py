"""Where the reward shift starts when the policy is not its reference: one look at some windows, before any step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bco_ray.objective import LossSums, RewardShift, loss_sums
from bco_ray.training.batches import WindowBatches
from bco_ray.training.building import Trainee
from bco_ray.training.gang import Gang
from bco_ray.training.step import Objective

MOST_WINDOWS = 8


@torch.no_grad()
def probe_shift(
    trainee: Trainee, gang: Gang, windows: Iterable[WindowBatches], objective: Objective, shift: RewardShift
) -> RewardShift:
    """`shift` after the rewards of a half-life of rows (at most MOST_WINDOWS windows). Collective; nothing is trained.

    Every window of the plan has the data's ratio of classes, so the first ones speak for all.
    """
    for number, window in enumerate(windows):
        local = LossSums.zero(trainee.engine.device)
        for host_batch in window.batches:
            batch = host_batch.to(trainee.engine.device)
            logps_B = trainee.engine.forward(batch.pack)
            local = local + loss_sums(
                "bce",
                logps_B,
                trainee.reference(batch),
                batch.labels_B,
                beta=objective.beta,
                weights_B=batch.weights_B,
                valid_B=batch.valid_B,
            )
        shift = shift.advance(LossSums.from_vector(gang.sum(local.to_vector())).shift_sums())
        if shift.rows_seen >= shift.half_life_rows or number + 1 == MOST_WINDOWS:
            break
    return shift
