"""Brings what is on the cluster in line with what is stored, again and again: after any kill, the next look mends it.

Every decision is written down before the cluster hears of it, and by compare-and-set: of two reconcilers one acts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bco_ray.config import dump_spec
from bco_ray.config.load import parse_spec
from bco_ray.control import deciding
from bco_ray.control.budget import overdrawn
from bco_ray.control.deciding import Action, Known, decide
from bco_ray.control.job import IllegalMoveError, Job, News
from bco_ray.control.jobs import JobStore
from bco_ray.control.metrics import JobMetrics, Trouble
from bco_ray.control.progress import Follower
from bco_ray.control.ray_jobs import Cluster
from bco_ray.errors import BcoError, ClusterError, ConflictError, SpecError
from bco_ray.storage import files
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry import log_context, logger
from bco_ray.telemetry.meters import NoMeters


@dataclass(frozen=True)
class Room:
    """How many jobs may be on the cluster at once: in all, of one project, and of the key that asked for them.
    `used_up` says what such a key has no more of, None if it has of everything.
    """

    jobs: int = 8
    of_project: int | None = None
    of_key: Callable[[str], int | None] = lambda _: None
    used_up: Callable[[str], str | None] = lambda _: None


class _Holder(NamedTuple):
    """Whose a job on the cluster is."""

    project: str
    key: str

    @classmethod
    def of(cls, job: Job) -> _Holder:
        return cls(job.project, job.created_by)


class Reconciler:
    """`run_once` looks at every job that somebody has to look after. One thread at a time."""

    def __init__(
        self,
        store: JobStore,
        cluster: Cluster,
        storage: Path,
        room: Room = Room(),
        metrics: JobMetrics = JobMetrics(NoMeters()),
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._room = room
        self._metrics = metrics
        self._follower = Follower()
        self._held: list[_Holder] = []

    def run_once(self, in_turn: Callable[[], bool] = lambda: True) -> None:
        """One look at all; what is wrong with one job is in nobody else's way.

        `in_turn` is asked before each job: a look may take longer than a turn lasts, and who goes on after that would
        do so beside another.
        """
        unsettled = self._store.unsettled()
        self._held = [_Holder.of(job) for job in unsettled if job.holds_cluster]
        for job in unsettled:
            if not in_turn():
                return
            try:
                self._settle(job)
            except Exception as error:  # noqa: BLE001  whatever is wrong with it, the others are looked after
                self._follower.forget(job.id)  # what it read may not have become events
                self._troubled(job, error)
        self._follower.keep({job.id for job in unsettled})
        self._metrics.looked(unsettled, self._storage)

    def _settle(self, job: Job) -> None:
        if job.status == "validating_files":
            self._validate(job)
            return
        known = self._known(job)
        action = decide(job, known)
        if action is not None:
            self._act(job, action, running=known.ray == "running")

    def _validate(self, job: Job) -> None:
        """The spec is written down for the driver, who looks at the data itself."""
        try:
            self._write_down(job)
        except SpecError as error:  # it was accepted by another version of this program
            self._fail(job, "spec_error", str(error), running=False)
            return
        self._store.move(job.id, "queued", News("Files validated, moving job to queued state."), seen=job)

    def _write_down(self, job: Job, *, again: bool = True) -> None:
        """Not `again`: only if another cluster, with a state of its own, has had the job so far. Raises SpecError."""
        directory = JobDirectory(self._storage, job.id)
        if directory.spec.is_file() and not again:
            return
        spec = parse_spec(job.spec, where=job.id)
        files.write_bytes(directory.spec, dump_spec(spec).encode())
        directory.write("origin", {"project": job.project, "traceparent": job.details.get("traceparent")})

    def _known(self, job: Job) -> Known:
        directory = JobDirectory(self._storage, job.id)
        ray = self._cluster.state(job.submission) if job.holds_cluster and job.submission else "unknown"
        error = directory.error(job.attempt)
        lacks = overdrawn(job.request, job.details)
        return Known(ray, directory.outcome, error, job.details.get("checkpoint_step"), lacks)

    def _act(self, job: Job, action: Action, *, running: bool) -> None:
        match action:
            case deciding.Submit():
                self._submit(job)
            case deciding.SubmitAgain():
                self._send(job)
            case deciding.Watch():
                self._watch(job, running=running)
            case deciding.Stop():
                if not job.details.get("stopping"):
                    self._store.note(job, details={**job.details, "stopping": True})
                self._cluster.stop(job.submission or "")
            case deciding.Release():
                self._release(job)
            case deciding.Succeed():
                self._succeed(job)
            case deciding.Fail(code, message):
                self._fail(job, code, message, running=running)
            case deciding.Requeue():
                self._requeue(job, action)

    def _release(self, job: Job) -> None:
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id), running=False)
        details = {**details, "stopping": False}
        self._store.note(job, [*news, News("The cluster is free of it.")], holds_cluster=False, details=details)
        self._follower.forget(job.id)

    def _submit(self, job: Job) -> None:
        if waiting := self._no_room(job):
            self._waits_for(job, waiting)
            return
        attempt = job.attempt + 1
        details = {**job.details, "waiting_for": None, "checkpoint_at_start": job.details.get("checkpoint_step")}
        seen = self._store.note(
            job, [News(f"Attempt {attempt} goes to the cluster.")], attempt=attempt, submission=f"{job.id}-{attempt}",
            holds_cluster=True, seen_at=None, again_at=None, details=details,
        )  # fmt: skip
        self._held.append(_Holder.of(job))
        self._send(seen)

    def _no_room(self, job: Job) -> str | None:
        if job.again_at and time.time() < job.again_at:
            return job.details.get("waiting_for") or "the next attempt"
        holders = {
            f"project {job.project} has": (
                sum(one.project == job.project for one in self._held),
                self._room.of_project,
            ),
            "its key has": (sum(one.key == job.created_by for one in self._held), self._room.of_key(job.created_by)),
            "there are": (len(self._held), self._room.jobs),
        }
        full = (f"{who} {held} jobs on the cluster, the most there may be" for who, (held, limit) in holders.items()
                if limit is not None and held >= limit)  # fmt: skip
        return next(full, None) or self._room.used_up(job.created_by)

    def _send(self, job: Job) -> None:
        try:
            self._write_down(job, again=False)
            self._cluster.submit(job.submission or "", job.id, job.attempt)
        except ClusterError as error:
            self._waits_for(job, f"the cluster: {error}")
            raise
        except SpecError as error:
            self._fail(job, "spec_error", str(error), running=False)

    def _waits_for(self, job: Job, what: str) -> None:
        if job.details.get("waiting_for") != what:
            self._store.note(job, details={**job.details, "waiting_for": what})

    def _watch(self, job: Job, *, running: bool) -> None:
        if running and job.status == "queued":
            job = self._store.move(job.id, "running", News("Fine-tuning job started."), seen=job)
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id), running=running)
        if not running:
            details["waiting_for"] = "the cluster to start it"
        changes: dict[str, Any] = {} if details == job.details else {"details": details}
        if job.seen_at is None:
            changes["seen_at"] = time.time()
        if changes or news:
            self._store.note(job, news, **changes)

    def _succeed(self, job: Job) -> None:
        directory = JobDirectory(self._storage, job.id)
        details, news = self._follower.look(job, directory, running=False)
        details |= {"percent": 100.0, "eta_seconds": None}
        outcome = directory.outcome or {}
        news += [News(f"New fine-tuned model created: {outcome['model']}."),
                 News("The job has successfully completed.")]  # fmt: skip
        self._store.move(job.id, "succeeded", *news, seen=job, outcome=outcome, details=details)

    def _fail(self, job: Job, code: str, message: str, *, running: bool) -> None:
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id), running=running)
        error = {"code": code, "message": message, "param": None}
        news.append(News(message, level="error"))
        self._store.move(job.id, "failed", *news, seen=job, error=error, details=details)

    def _requeue(self, job: Job, action: deciding.Requeue) -> None:
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id), running=False)
        details = {**details, "losses": action.losses, "waiting_for": "the next attempt"}
        changes: dict[str, Any] = {"holds_cluster": False, "again_at": time.time() + action.seconds, "details": details}
        lost = News(f"Attempt {job.attempt} was lost ({action.why}); it is tried again.", level="warn")
        if job.status == "running":
            self._store.move(job.id, "queued", *news, lost, seen=job, **changes)
        else:
            self._store.note(job, [*news, lost], **changes)

    def _troubled(self, job: Job, error: Exception) -> None:
        kind, level = _TROUBLES.get(type(error), ("other", logging.ERROR))
        with log_context(job_id=job.id, attempt=job.attempt, project=job.project):
            foreseen = isinstance(error, BcoError | OSError)
            logger.log(level, "%s: %s", job.id, error, exc_info=None if foreseen else error)
        self._metrics.troubled(kind)


_TROUBLES: dict[type[Exception], tuple[Trouble, int]] = {
    ConflictError: ("conflict", logging.DEBUG),  # somebody was faster; the next look sees what they did
    IllegalMoveError: ("conflict", logging.DEBUG),
    ClusterError: ("cluster", logging.WARNING),
}
