"""The reward shift delta (eq. 7): half the sum of the two class means of r, over decayed sums. A value, never clamped.

One window's sums are added over micro-batches and workers first (`ShiftSums.merge`, or the all-reduced vector of
`LossSums`), then the state advances once. So neither accumulation nor the number of workers can change delta, and no
mean of means can arise. Shapes: B rows. Rewards in nats. Source: design/bco-spec.md 1.4.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

LEAST_COUNT = 1e-6
"""Below this decayed count a class's sums say nothing and its last known mean stands."""


@dataclass(frozen=True)
class ShiftSums:
    """Reward sums and row counts per class. Floats, because decayed counts are not whole."""

    chosen_reward_sum: float = 0.0
    chosen_count: float = 0.0
    rejected_reward_sum: float = 0.0
    rejected_count: float = 0.0

    @property
    def rows(self) -> float:
        return self.chosen_count + self.rejected_count

    def merge(self, other: ShiftSums) -> ShiftSums:
        return ShiftSums(
            self.chosen_reward_sum + other.chosen_reward_sum,
            self.chosen_count + other.chosen_count,
            self.rejected_reward_sum + other.rejected_reward_sum,
            self.rejected_count + other.rejected_count,
        )

    def decayed(self, decay: float) -> ShiftSums:
        return ShiftSums(
            decay * self.chosen_reward_sum,
            decay * self.chosen_count,
            decay * self.rejected_reward_sum,
            decay * self.rejected_count,
        )


@dataclass(frozen=True)
class RewardShift:
    """The state behind delta, the same on every worker. `advance` returns the next one.

    `half_life_rows`: after so many rows a reward counts half; 0 = the last window alone, inf = never forget.
    A mean is None until its class has been seen.
    """

    half_life_rows: float = 512.0
    sums: ShiftSums = ShiftSums()
    chosen_mean: float | None = None
    rejected_mean: float | None = None
    rows_seen: int = 0

    def __post_init__(self) -> None:
        if not self.half_life_rows >= 0:
            raise ValueError(f"half_life_rows must be 0 or more (inf = never forget), got {self.half_life_rows}")

    @property
    def delta(self) -> float:
        """Half the sum of the class means once both classes have been seen, else 0."""
        if self.chosen_mean is None or self.rejected_mean is None:
            return 0.0
        return (self.chosen_mean + self.rejected_mean) / 2

    @staticmethod
    def observe(rewards_B: Tensor, labels_B: Tensor, valid_B: Tensor | None = None) -> ShiftSums:
        """Sums of these rows, for a probe before training; a training step has them in its `LossSums` already."""
        valid_B = torch.ones_like(labels_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
        rewards_B = rewards_B.detach().double()
        sums = []
        for label in (1, 0):
            rows_B = valid_B & (labels_B == label)
            sums += [torch.where(rows_B, rewards_B, 0).sum(), rows_B.sum().double()]
        return ShiftSums(*torch.stack(sums).tolist())

    def advance(self, window_sums: ShiftSums) -> RewardShift:
        """The state after one window, given the sums over **all** its rows. An empty window changes nothing.

        Raises ValueError when a sum is NaN or infinite: a step that was skipped must not advance the shift.
        """
        return self.fold(window_sums, decay=decay_per_window(window_sums.rows, self.half_life_rows))

    def fold(self, window_sums: ShiftSums, *, decay: float) -> RewardShift:
        """`advance` with the decay given: state = decay * state + window."""
        if not all(map(math.isfinite, asdict(window_sums).values())):
            raise ValueError(f"the reward shift was given sums that are not finite: {window_sums}")
        if window_sums.rows == 0:
            return self
        sums = self.sums.decayed(decay).merge(window_sums)
        return replace(
            self,
            sums=sums,
            chosen_mean=_mean(sums.chosen_reward_sum, sums.chosen_count, self.chosen_mean),
            rejected_mean=_mean(sums.rejected_reward_sum, sums.rejected_count, self.rejected_mean),
            rows_seen=self.rows_seen + round(window_sums.rows),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for strict JSON, exact to the bit; `half_life_rows` null = never forget."""
        state = asdict(self)
        return {**state, "half_life_rows": None if math.isinf(self.half_life_rows) else self.half_life_rows}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RewardShift:
        """The inverse of `state_dict`. Raises ValueError unless the keys are exactly its keys."""
        whole = cls().state_dict()
        if state.keys() != whole.keys() or state["sums"].keys() != whole["sums"].keys():
            raise ValueError(f"not the state of a reward shift: {state}")
        half_life_rows = math.inf if state["half_life_rows"] is None else state["half_life_rows"]
        return cls(**{**state, "half_life_rows": half_life_rows, "sums": ShiftSums(**state["sums"])})


def decay_per_window(window_rows: float, half_life_rows: float) -> float:
    """d = 0.5 ** (window_rows / half_life_rows): 0 at half-life 0, 1 at half-life inf."""
    return 0.5 ** (window_rows / half_life_rows) if half_life_rows > 0 else 0.0


def error_term(rewards_B: Tensor, labels_B: Tensor, *, delta: float) -> Tensor:
    """A e^delta + B e^-delta with A = mean of e^-r over label 1, B = mean of e^r over label 0 (theorems 3 and 4).

    What keeps the BCO loss above DPO's; for one pair, e^-(r_w - delta) + e^(r_l - delta). 0-d, for diagnostics.
    """
    log_a, log_b = _log_error_means(rewards_B, labels_B)
    return (log_a + delta).exp() + (log_b - delta).exp()


def exact_shift(rewards_B: Tensor, labels_B: Tensor) -> Tensor:
    """The delta that minimises `error_term`, 0.5 log(B / A); eq. 7 is its first-order form. 0-d, for diagnostics."""
    log_a, log_b = _log_error_means(rewards_B, labels_B)
    return (log_b - log_a) / 2


def _log_error_means(rewards_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    rewards_B = rewards_B.detach().double()
    chosen, rejected = rewards_B[labels_B == 1], rewards_B[labels_B == 0]
    if len(chosen) == 0 or len(rejected) == 0:
        raise ValueError("the error term needs rows of both labels")
    return torch.logsumexp(-chosen, 0) - math.log(len(chosen)), torch.logsumexp(rejected, 0) - math.log(len(rejected))


def _mean(reward_sum: float, count: float, last_known: float | None) -> float | None:
    return reward_sum / count if count > LEAST_COUNT else last_known
