"""What a job can be and what it can become: the one table."""

from __future__ import annotations

from typing import Literal

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]

MOVES: dict[Status, frozenset[Status]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "succeeded", "failed", "cancelled"}),
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""From `queued` a job ends when nobody looked while it ran; from `running` it is queued again when its cluster goes."""

ENDED: frozenset[Status] = frozenset(status for status, further in MOVES.items() if not further)
WANTED: frozenset[Status] = frozenset({"queued", "running"})
"""Those that are to be on the cluster."""


def sources(status: Status) -> list[Status]:
    """The states that may become `status`."""
    return [before for before, further in MOVES.items() if status in further]
