"""The reward shift where the rewards are: `RewardShift` as one tensor, so that no step waits to learn delta."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bco_ray.objective.shift import LEAST_COUNT, RewardShift, ShiftSums


@dataclass(frozen=True, eq=False)
class ShiftTensor:
    """A value, like the RewardShift it stands for; `advance` returns the next one and asks the device nothing.

    `sums`: [chosen reward, chosen count, rejected reward, rejected count], decayed; `means`: [chosen, rejected], NaN
    for a class not seen yet; `rows_seen` 0-d. All float64.
    """

    half_life_rows: float
    sums: Tensor
    means: Tensor
    rows_seen: Tensor

    @classmethod
    def of(cls, shift: RewardShift, device: torch.device | str = "cpu") -> ShiftTensor:
        """The same state on `device`."""
        sums = shift.sums
        known = [math.nan if mean is None else mean for mean in (shift.chosen_mean, shift.rejected_mean)]
        numbers = (
            [sums.chosen_reward_sum, sums.chosen_count, sums.rejected_reward_sum, sums.rejected_count],
            known,
            shift.rows_seen,
        )
        return cls(shift.half_life_rows, *(torch.tensor(x, dtype=torch.float64, device=device) for x in numbers))

    @property
    def delta(self) -> Tensor:
        """0-d: half the sum of the class means once both classes have been seen, else 0."""
        return torch.nan_to_num(self.means.sum() / 2, nan=0.0)

    def advance(self, window: Tensor, *, unless: Tensor) -> ShiftTensor:
        """The state after a window's four sums (in the order of `sums`), or this one where the 0-d `unless` is true.

        An empty window changes nothing either.
        """
        rows = window[1] + window[3]
        decay = torch.pow(0.5, rows / self.half_life_rows) if self.half_life_rows > 0 else torch.zeros_like(rows)
        sums = decay * self.sums + window
        counts, rewards = sums[1::2], sums[0::2]
        means = torch.where(counts > LEAST_COUNT, rewards / counts, self.means)
        stays = unless | (rows == 0)
        return ShiftTensor(
            self.half_life_rows,
            torch.where(stays, self.sums, sums),
            torch.where(stays, self.means, means),
            torch.where(stays, self.rows_seen, self.rows_seen + rows),
        )

    def value(self) -> RewardShift:
        """The state as plain numbers. Waits for the device."""
        chosen, rejected = (None if math.isnan(mean) else mean for mean in self.means.tolist())
        return RewardShift(
            self.half_life_rows, ShiftSums(*self.sums.tolist()), chosen, rejected, round(self.rows_seen.item())
        )
