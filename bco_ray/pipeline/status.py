"""A training's status: what its events and its last step amount to, in `<run>/status.json` and in words."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bco_ray.storage import files
from bco_ray.storage.run_journal import Event
from bco_ray.telemetry import Progress, logger

State = Literal["starting", "waiting", "running", "retrying", "stopping", "stopped", "finished", "failed"]


class RunStatus(BaseModel):
    """How a training stands. Times are unix seconds.

    `error`: the first real error of the newest failure, also after a retry went well. `problem`: what goes wrong just
    now although training goes on. `waiting_for`: what the cluster lacks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Literal["train"] = "train"
    state: State = "starting"
    step: int = 0
    total_steps: int | None = None
    percent: float | None = None
    eta_seconds: float | None = None
    workers: int | None = None
    attempts: int = 0
    failures: int = 0
    checkpoint_step: int | None = None
    problem: str | None = None
    waiting_for: str | None = None
    error: str | None = None
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    updated_at: float = 0.0

    def after(self, event: Event) -> RunStatus:
        """With one more event."""
        change = _CHANGES.get(event["event"])
        return self if change is None else self.model_copy(update=change(self, event))

    def at(self, progress: Progress) -> RunStatus:
        """With steps done."""
        total = None if progress.total is None else int(progress.total)
        known = {"step": int(progress.done), "total_steps": total, "percent": progress.percent}
        return self.model_copy(update={**known, "eta_seconds": progress.eta_seconds})


_Change = Callable[[RunStatus, Event], dict[str, Any]]

_CHANGES: dict[str, _Change] = {
    "attempt": lambda s, e: {"state": "starting", "workers": e["workers"], "attempts": s.attempts + 1},
    "waiting": lambda s, e: {"state": "waiting", "waiting_for": _lack(e)},
    "placed": lambda s, e: {"state": "starting", "waiting_for": None},
    "training": lambda s, e: {"state": "running", "waiting_for": None, "problem": None, "workers": e["workers"],
                              "step": e["step"], "total_steps": e["total_steps"], "checkpoint_step": e["step"] or None},
    "checkpoint": lambda s, e: {"checkpoint_step": e["step"], "problem": None},
    "checkpoint_failed": lambda s, e: {"problem": _words_for_checkpoint(e)},
    "checkpoint_missing": lambda s, e: {"problem": f"checkpoint {e['step']} could not be written in time"},
    "checkpoints_unreadable": lambda s, e: {"problem": f"checkpoints cannot be read: {e['error']}"},
    "export_failed": lambda s, e: {"problem": f"the model cannot be written: {e['error']}"},
    "failed": lambda s, e: {"state": "retrying", "failures": s.failures + 1, "error": e["error"]},
    "gave_up": lambda s, e: {"state": "failed", "failures": s.failures + 1, "error": e["error"]},
    "stopping": lambda s, e: {"state": "stopping"},
    "stopped": lambda s, e: {"state": "stopped"},
    "finished": lambda s, e: {"state": "finished", "problem": None},
}  # fmt: skip

_WORDS: dict[str, Callable[[Event], str]] = {
    "waiting": lambda e: f"waiting for the cluster: {_lack(e)}",
    "growing": lambda e: f"there is room for {e['room']} workers: stopping {e['workers']} to go on with more",
    "checkpoint_failed": lambda e: _words_for_checkpoint(e),
    "checkpoint_skipped": lambda e: f"no checkpoint at step {e['step']}: {e['being_written']} is still being written",
    "checkpoint_missing": lambda e: f"checkpoint {e['step']} could not be written in time",
    "checkpoint_damaged": lambda e: f"checkpoint {e['step']} is damaged and passed over: {e['error']}",
    "checkpoints_unreadable": lambda e: f"checkpoints cannot be read: {e['error']}; tried again",
    "export_failed": lambda e: f"the model cannot be written: {e['error']}; tried again",
    "failed": lambda e: f"{e['error']}; trying again in {e['again_in_seconds']:.0f} s",
    "stopping": lambda e: "stopping after the next step, with a checkpoint; once more to stop at once",
    "stopped": lambda e: "stopped with a checkpoint" if e["checkpoint"] else "stopped without a new checkpoint",
}

_TROUBLES = frozenset({"checkpoint_failed", "checkpoints_unreadable", "checkpoint_missing", "export_failed"})
"""What is told again and again while it lasts."""


def _lack(event: Event) -> str:
    return f"{event['workers']} workers are to start, and there is room for {event['room']}"


def _words_for_checkpoint(event: Event) -> str:
    return f"checkpoint {event['step']} cannot be written: {event['error']}; training goes on, it is tried again"


class StatusFile:
    """`status.json` in a run's directory, from this command's start on."""

    def __init__(self, run: Path) -> None:
        self.path = run / "status.json"
        self.status = RunStatus()
        self._told = ""

    def words_for(self, event: Event) -> str:
        """What a person is told of an event, before it is added: nothing if it is what one would expect.

        A trouble that lasts is told once, and its end.
        """
        kind, problem = event["event"], self.status.problem
        if kind == "checkpoint" and problem:
            return f"checkpoint {event['step']} is written: no trouble any more"
        if kind not in _WORDS or (problem and kind in _TROUBLES and kind == self._told):
            return ""
        self._told = kind if kind in _TROUBLES else self._told
        return _WORDS[kind](event)

    def add(self, event: Event) -> None:
        """It happened."""
        self.status = self.status.after(event)

    def write(self, progress: Progress | None) -> None:
        """Write it down, with steps done if there are new ones; a disk that is full is no reason to stop watching."""
        if progress is not None:
            self.status = self.status.at(progress)
        self.status = self.status.model_copy(update={"updated_at": round(time.time(), 3)})
        try:
            files.write_json(self.path, self.status.model_dump())
        except OSError as error:
            logger.debug("%s: cannot be written: %s", self.path, error)
