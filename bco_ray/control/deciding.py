"""What is to be done about a job, from what is known of it. No database and no cluster in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bco_ray.control.job import Job
from bco_ray.control.states import WANTED

RayState = Literal["pending", "running", "succeeded", "failed", "stopped", "unknown"]
"""Of a submission at Ray; `unknown`: Ray has never heard of it, or no longer knows."""

MOST_LOSSES = 8
"""Attempts in a row that end without an error of their own and without a new checkpoint."""

AGAIN_SECONDS = (0.0, 5.0, 15.0, 60.0, 300.0)


@dataclass(frozen=True)
class Known:
    """What the cluster and the job's directory say. `error`: of this attempt's driver. `checkpoint`: newest step.
    `overdrawn`: what the budget lacks, in words.
    """

    ray: RayState
    outcome: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    checkpoint: int | None = None
    overdrawn: str | None = None


@dataclass(frozen=True)
class Submit:
    """As the next attempt, if there is room."""


@dataclass(frozen=True)
class SubmitAgain:
    """The same attempt: it was written down, and never reached Ray."""


@dataclass(frozen=True)
class Watch:
    """It runs, or waits on the cluster."""


@dataclass(frozen=True)
class Stop:
    """It is not wanted any more, and still there."""


@dataclass(frozen=True)
class Release:
    """It is not wanted any more, and gone."""


@dataclass(frozen=True)
class Succeed:
    """Its model is registered."""


@dataclass(frozen=True)
class Fail:
    """For good."""

    code: str
    message: str


@dataclass(frozen=True)
class Requeue:
    """The attempt was lost: once more, after a while. `losses` in a row, this one among them."""

    losses: int
    seconds: float
    why: str


Action = Submit | SubmitAgain | Watch | Stop | Release | Succeed | Fail | Requeue


def decide(job: Job, known: Known) -> Action | None:
    """None: nothing to do."""
    if job.status not in {*WANTED, "paused"}:
        return _leave(job, known)
    if job.status in WANTED and known.outcome is not None:
        return Succeed()
    if known.overdrawn is not None and known.outcome is None:
        return Fail("budget_exceeded", f"Stopped: {known.overdrawn}. Retry it from its newest checkpoint with more.")
    if job.status == "paused":
        return _leave(job, known)
    if not job.holds_cluster:
        return Submit()
    if job.details.get("stopping"):  # it was paused, and taken up again before it had ended
        return _leave(job, known)
    match known.ray:
        case "pending" | "running":
            return Watch()
        case "unknown" if job.seen_at is None:
            return SubmitAgain()
        case "unknown":
            return _lost(job, known, "its cluster does not know it any more")
        case "stopped":
            return _lost(job, known, "it was stopped from outside")
    if known.error is not None:
        if known.error.get("again"):
            return _lost(job, known, known.error["message"].rstrip("."))
        return Fail(known.error["code"], known.error["message"])
    return _lost(job, known, "its driver ended without a word")


def _leave(job: Job, known: Known) -> Action | None:
    if not job.holds_cluster:
        return None
    return Stop() if known.ray in {"pending", "running"} else Release()


def _lost(job: Job, known: Known, why: str) -> Action:
    moved = known.checkpoint is not None and known.checkpoint != job.details.get("checkpoint_at_start")
    losses = 1 if moved else int(job.details.get("losses", 0)) + 1
    if losses >= MOST_LOSSES:
        return Fail("lost", f"{losses} attempts in a row were lost without a new checkpoint; the last one: {why}.")
    return Requeue(losses, AGAIN_SECONDS[min(losses, len(AGAIN_SECONDS)) - 1], why)
