"""Where a training stands between two steps: what a checkpoint holds beside weights, optimizer and generators."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bco_ray.objective import RewardShift


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands after `next_step` optimizer steps; the data cursor *is* `next_step` (see `plan`)."""

    next_step: int
    shift: RewardShift
    skipped_steps: int
    tokens_seen: int

    @classmethod
    def first(cls, shift: RewardShift) -> LoopState:
        """Before the first step."""
        return cls(0, shift, skipped_steps=0, tokens_seen=0)

    def after(self, step: int, *, tokens: int, updated: bool) -> LoopState:
        """With one more step counted."""
        skipped = self.skipped_steps + (not updated)
        return replace(self, next_step=step + 1, skipped_steps=skipped, tokens_seen=self.tokens_seen + tokens)

    def with_shift(self, shift: RewardShift) -> LoopState:
        """With the shift brought up to `next_step`."""
        return replace(self, shift=shift)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "shift": self.shift.state_dict()}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> LoopState:
        """The inverse of `as_json`."""
        return cls(**{**state, "shift": RewardShift.from_state(state["shift"])})
