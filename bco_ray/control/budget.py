"""What a job may use, and what it has used: time and GPUs held on the cluster, tokens trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SECONDS_PER_HOUR = 3600

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Budget(BaseModel):
    """All limits of a job that has any. `hours`, `gpu_hours`: at work on the cluster, over all attempts. `tokens`:
    trained on; steps that a lost attempt did again count once. `deadline`: unix seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: Amount | None = None
    gpu_hours: Amount | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None
    deadline: Amount | None = None

    def overdrawn(self, spent: Spent, now: float) -> str | None:
        """In words, what there is no more of."""
        if self.deadline is not None and now >= self.deadline:
            when = datetime.fromtimestamp(self.deadline, UTC).isoformat(timespec="seconds")
            return f"the deadline, {when}, has passed"
        for name, used in spent.amounts.items():
            allowed = getattr(self, name)
            if allowed is not None and used >= allowed:
                return f"{used:.4g} of {allowed:g} {name.replace('_', '-')} are used"
        return None


@dataclass(frozen=True)
class Spent:
    """`at`: unix seconds of the last look at which the job ran; None: it does not run. `month_gpu_seconds`: of those in
    `month`, the last in which it ran.
    """

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    tokens: int = 0
    at: float | None = None
    month: str | None = None
    month_gpu_seconds: float = 0.0

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Spent:
        """As it is in a job's `details`."""
        return cls(**details.get("spent") or {})

    @property
    def amounts(self) -> dict[str, float]:
        """By the names that a budget has for them."""
        hours, gpu_hours = self.seconds / SECONDS_PER_HOUR, self.gpu_seconds / SECONDS_PER_HOUR
        return {"hours": hours, "gpu_hours": gpu_hours, "tokens": self.tokens}

    def until(self, now: float, gpus: float, tokens: int, *, waiting: bool = False) -> dict[str, Any]:
        """With the time since the last look, through which it held so many GPUs; as it goes into `details`."""
        passed = 0.0 if self.at is None or waiting else max(0.0, now - self.at)
        month, held = month_of(now), passed * gpus
        of_month = held + (self.month_gpu_seconds if self.month == month else 0.0)
        seconds, gpu_seconds, of_month = (
            round(s, 1) for s in (self.seconds + passed, self.gpu_seconds + held, of_month)
        )
        return asdict(Spent(seconds, gpu_seconds, max(tokens, self.tokens), now, month, of_month))

    def paused(self) -> dict[str, Any]:
        """The time from here on does not count."""
        return asdict(replace(self, at=None))


def month_of(now: float) -> str:
    """`2026-12`, in UTC."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m}"


def overdrawn(request: Mapping[str, Any], details: Mapping[str, Any]) -> str | None:
    """What this job's budget lacks just now, in words."""
    budget = request.get("budget")
    return Budget(**budget).overdrawn(Spent.of(details), time.time()) if budget else None


def gpus_held(spec: Mapping[str, Any], details: Mapping[str, Any]) -> float:
    """By the workers of the present phase; none while they wait for the cluster. `spec`: resolved.

    Of a range of workers the fewest, where nobody says how many there are.
    """
    training, phase = spec["training"], details.get("phase")
    if details.get("waiting_for"):
        return 0.0
    if phase in {"score", "evaluate"}:
        count = _fewest(spec["scoring"]["num_workers"])
    else:
        count = details.get("workers") or _fewest(training["num_workers"]) if phase == "train" else 0
    return float(count * training["resources_per_worker"].get("GPU", 0))


def _fewest(workers: int | list[int]) -> int:
    return workers if isinstance(workers, int) else max(1, min(workers))
