"""The reward shift as TRL's BCOTrainer wrote it (`running.json` beside its checkpoints), as one of ours."""

from __future__ import annotations

import math
from typing import Any

from bco_ray.objective.shift import LEAST_COUNT, RewardShift, ShiftSums

_KEYS = frozenset({"count", "mean", "std", "var"})


def shift_from_running_moments(state: dict[str, Any], *, half_life_rows: float) -> RewardShift:
    """A shift whose delta is TRL's mean, remembered for at most one half-life of rows; a plain start of no rows.

    TRL keeps one mean over the rows of both classes (nats), so both class means start there and share the count; what
    training observes then pulls them apart. `std` is not read: TRL divides by zero for it after a single row.
    Only right under TRL's own reference and beta: under any other, rewards are other numbers.
    Raises ValueError unless the keys are exactly count, mean, std, var, the mean finite, count and var finite and >= 0.
    """
    if not isinstance(state, dict) or state.keys() != _KEYS:
        raise ValueError(f"not the running.json of a BCOTrainer, which has count, mean, std and var: {state!r:.200}")
    count, mean, var = (_number(state[name], name) for name in ("count", "mean", "var"))
    if count < 0 or var < 0:
        raise ValueError(f"running.json: count and var must be 0 or more, got {count} and {var}")
    if count < LEAST_COUNT:  # TRL counts from 1e-24, so as not to divide by zero
        return RewardShift(half_life_rows=half_life_rows)
    rows = min(count, half_life_rows) / 2
    sums = ShiftSums(rows * mean, rows, rows * mean, rows)
    return RewardShift(half_life_rows=half_life_rows, sums=sums, chosen_mean=mean, rejected_mean=mean)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"running.json: {name} is {value!r}, not a finite number: the training that wrote it had failed"
        )
    return float(value)
