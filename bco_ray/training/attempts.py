"""A run as attempts: start a worker group, see it through, decide what follows, until the model is there.

Runs where the command was typed, and knows nothing of Ray: `launch` gives it a way to start groups and to count room.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bco_ray.errors import TrainingError
from bco_ray.storage import files
from bco_ray.storage.run_journal import Event, Mark, RunJournal
from bco_ray.training import dry_run, stopping
from bco_ray.training.failures import (
    RETRY_SECONDS,
    Cause,
    GiveUp,
    Retry,
    Situation,
    Symptom,
    cause_of,
    decide,
    silent,
    size_for,
)
from bco_ray.training.setup import TrainSetup

POLL_SECONDS = 0.5
GRACE_SECONDS = 360
"""How long a clean stop may take after Ctrl-C or SIGTERM; a second one does not wait."""

LONGEST_RESIZE_SECONDS = 3600.0
"""A growth that found no place after all is tried again later and later, up to this."""

FEWEST_PARTS = 4
"""Micro-batches are halved down to this part of the longest row there may be."""


@dataclass(frozen=True)
class Finished:
    """All workers came back. `stopped`: they were asked to; else the model is exported."""

    state: dict[str, Any]
    stopped: bool = False


@dataclass(frozen=True)
class Failed:
    """What Ray says about it; workers write down what they know themselves."""

    symptoms: tuple[Symptom, ...]


class Group(Protocol):
    """A worker group that was started."""

    def wait(self, seconds: float) -> bool:
        """Whether it is over after at most so long."""

    def result(self) -> Finished | Failed:
        """How it ended."""


@dataclass(frozen=True)
class Limits:
    """How many workers, and how patient. `resize_seconds`: how often an elastic run looks for more room."""

    least: int
    most: int
    max_failures: int
    resize_seconds: float


class Attempts:
    """`start` starts a group of so many workers; `room` counts workers that could be started now beside them.

    `ask` has the cluster keep room for so many more, which is counted in `room`; 0 gives it up.
    """

    def __init__(
        self,
        setup: TrainSetup,
        limits: Limits,
        start: Callable[[TrainSetup, int], Group],
        room: Callable[[], int],
        pause: Callable[[float], None] = time.sleep,
        ask: Callable[[int], None] = lambda workers: None,
    ) -> None:
        self._setup = setup
        self._limits = limits
        self._start = start
        self._room = room
        self._pause = pause
        self._ask = ask
        self._run = files.path_of(setup.run)
        self._journal = RunJournal(self._run)
        self._resize_seconds = limits.resize_seconds
        self._in_a_row = 0
        self._last: Cause | None = None
        self._saved = False

    def run(self) -> dict[str, Any]:
        """The final loop state, when the model is in `<run>/model`. Raises TrainingError if nothing more can be done.

        KeyboardInterrupt comes through after a clean stop. However it ends, the journal says so.
        """
        try:
            state = self._until_finished()
        except KeyboardInterrupt:
            self._journal.write("stopped", checkpoint=self._saved)
            raise
        except Exception as error:
            self._journal.write("gave_up", error=str(error))
            raise
        finally:
            self._ask(0)
        self._journal.write("finished")
        return state

    def _until_finished(self) -> dict[str, Any]:
        workers = size_for(self._situation(0, Cause("lost", "")))
        while True:
            began = self._journal.mark
            stopping.withdraw(self._run)
            self._journal.write("attempt", workers=workers)
            self._say_if_waiting(workers)
            self._ask(0)  # or what is kept for more of them would be in their own way
            ended = self._see_through(self._start(self._setup, workers), workers, began)
            if isinstance(ended, Finished) and not ended.stopped:
                return ended.state
            if isinstance(ended, Finished):
                workers = self._after_stop(workers)
            else:
                workers = self._after_failure(ended, workers, began)

    def _see_through(self, group: Group, workers: int, began: Mark) -> Finished | Failed:
        look_at = time.monotonic() + self._resize_seconds
        wants_more = workers < self._limits.most
        try:
            while not group.wait(POLL_SECONDS):
                if wants_more and self._has(began, "training"):  # not before: they would take its own places
                    wants_more = False
                    self._ask(self._limits.most - workers)
                if workers < self._limits.most and time.monotonic() > look_at:
                    look_at = time.monotonic() + self._resize_seconds
                    self._grow_if_possible(workers, began)
        except KeyboardInterrupt:
            self._stop_cleanly(group, began)
            raise
        return group.result()

    def _say_if_waiting(self, workers: int) -> None:
        if (room := self._room()) < workers:
            self._journal.write("waiting", workers=workers, room=room)

    def _grow_if_possible(self, workers: int, began: Mark) -> None:
        """A larger group starts where this one stopped, so that nothing is computed twice."""
        if self._has(began, "training") and (more := self._room()) > 0:
            with suppress(OSError):  # a full disk: another time
                stopping.ask_to_stop(self._run, "growing")
                self._journal.write("growing", workers=workers, room=workers + more)

    def _stop_cleanly(self, group: Group, began: Mark) -> None:
        """Waits if there is anything to save; another KeyboardInterrupt ends that.

        A group that has not begun is asked too: should it still come to its first step, it goes no further.
        """
        with suppress(OSError):  # a full disk: then without a checkpoint
            stopping.ask_to_stop(self._run, "interrupted")
        if not self._has(began, "training"):
            return
        self._journal.write("stopping", because="interrupted")
        if group.wait(GRACE_SECONDS):
            self._saved = isinstance(group.result(), Finished)
            stopping.withdraw(self._run)

    def _has(self, began: Mark, kind: str) -> bool:
        return any(event["event"] == kind for event in self._journal.read(since=began))

    def _after_stop(self, workers: int) -> int:
        """Nobody failed: the cluster gives or takes. It takes a moment to count what was given back."""
        self._in_a_row, self._last = 0, None
        self._pause(RETRY_SECONDS)
        return size_for(self._situation(workers, Cause("lost", "")))

    def _after_failure(self, failed: Failed, workers: int, began: Mark) -> int:
        events = self._journal.read(since=began)
        symptoms = [*_from_workers(events), *failed.symptoms]
        hosts = {event["rank"]: event["host"] for event in events if event["event"] == "placed"}
        cause = cause_of([*symptoms, *silent(symptoms, hosts)])
        progressed = any(event["event"] == "checkpoint" for event in events)
        self._in_a_row = (0 if progressed else self._in_a_row) + (cause.kind != "no_room")
        decision = decide(cause, self._situation(workers, cause))
        self._last = cause
        if isinstance(decision, GiveUp):
            raise TrainingError(f"training failed: {decision.reason}")
        return self._before_retry(decision, cause)

    def _before_retry(self, decision: Retry, cause: Cause) -> int:
        """The pause comes before the room is counted: a cluster takes a moment to notice that a node is gone."""
        if cause.kind == "no_room":  # nor to be tried again soon
            self._resize_seconds = min(LONGEST_RESIZE_SECONDS, 2 * self._resize_seconds)
            self._journal.write("waiting", workers=decision.workers, room=self._room())
            return decision.workers
        if decision.halve_micro_batch:
            self._setup = halved(self._setup)
        self._journal.write(
            "failed", kind=cause.kind, error=cause.message, in_a_row=self._in_a_row,
            again_in_seconds=decision.wait_seconds, smaller_micro_batches=decision.halve_micro_batch,
        )  # fmt: skip
        self._pause(decision.wait_seconds)
        return size_for(self._situation(decision.workers, cause))

    def _situation(self, workers: int, cause: Cause) -> Situation:
        limits = self._limits
        return Situation(
            workers=workers,
            least=limits.least,
            most=limits.most,
            room=self._room() if limits.least < limits.most else limits.most,
            in_a_row=self._in_a_row,
            max_failures=limits.max_failures,
            repeated=self._last is not None and cause.message == self._last.message and self._in_a_row > 1,
            can_halve=micro_batch_tokens(self._setup) > fewest_tokens(self._setup),
        )


def _from_workers(events: list[Event]) -> list[Symptom]:
    """What the workers wrote down themselves, in their own words."""
    failed = (event for event in events if event["event"] == "worker_failed")
    return [Symptom(e["type"], e["error"], e["rank"], e["at"], e["kind"]) for e in failed]


def micro_batch_tokens(setup: TrainSetup) -> int:
    """What a micro-batch may hold now; before a dry run has found it, the least that it would try."""
    return setup.max_tokens_per_micro_batch or dry_run.remembered(files.path_of(setup.run)) or setup.max_length


def fewest_tokens(setup: TrainSetup) -> int:
    """Below this, smaller micro-batches would hold one row each anyway."""
    return max(1, setup.max_length // FEWEST_PARTS)


def halved(setup: TrainSetup) -> TrainSetup:
    """With micro-batches of half the tokens. What a dry run found is changed on disk, so later runs keep it too."""
    tokens = max(fewest_tokens(setup), micro_batch_tokens(setup) // 2)
    if setup.max_tokens_per_micro_batch:
        return replace(setup, max_tokens_per_micro_batch=tokens)
    dry_run.remember(files.path_of(setup.run), tokens)
    return setup
