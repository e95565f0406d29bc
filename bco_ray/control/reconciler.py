"""Brings what is on the cluster in line with what is stored, again and again: after any kill, the next look mends it.

Every decision is written down before the cluster hears of it, and by compare-and-set: of two reconcilers one acts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.config import dump_spec
from bco_ray.config.load import parse_spec
from bco_ray.control import deciding
from bco_ray.control.deciding import Action, Known, decide
from bco_ray.control.job import IllegalMoveError, Job, News
from bco_ray.control.jobs import JobStore
from bco_ray.control.progress import Follower
from bco_ray.control.ray_jobs import Cluster
from bco_ray.errors import BcoError, ClusterError, ConflictError, SpecError
from bco_ray.storage import files
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry import logger


@dataclass(frozen=True)
class Room:
    """How many jobs may be on the cluster at once: in all, and of one project (a callable: keys may differ)."""

    jobs: int = 8
    of_project: Callable[[str], int | None] = lambda _: None


class Reconciler:
    """`run_once` looks at every job that somebody has to look after. One thread at a time."""

    def __init__(self, store: JobStore, cluster: Cluster, storage: Path, room: Room = Room()) -> None:
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._room = room
        self._follower = Follower()
        self._held: Counter[str] = Counter()

    def run_once(self) -> None:
        """One look at all; what is wrong with one job is in nobody else's way."""
        unsettled = self._store.unsettled()
        self._held = Counter(job.project for job in unsettled if job.holds_cluster)
        for job in unsettled:
            try:
                self._settle(job)
            except (BcoError, OSError) as error:
                self._follower.forget(job.id)  # what it read may not have become events
                _log(job, error)

    def _settle(self, job: Job) -> None:
        if job.status == "validating_files":
            self._validate(job)
            return
        action = decide(job, self._known(job))
        if action is not None:
            self._act(job, action)

    def _validate(self, job: Job) -> None:
        """The spec is written down for the driver, who looks at the data itself."""
        try:
            spec = parse_spec(job.spec, where=job.id)
        except SpecError as error:  # it was accepted by another version of this program
            self._fail(job, "spec_error", str(error))
            return
        files.write_bytes(JobDirectory(self._storage, job.id).spec, dump_spec(spec).encode())
        self._store.move(job.id, "queued", News("Files validated, moving job to queued state."), seen=job)

    def _known(self, job: Job) -> Known:
        directory = JobDirectory(self._storage, job.id)
        ray = self._cluster.state(job.submission) if job.holds_cluster and job.submission else "unknown"
        error = directory.error(job.attempt)
        return Known(ray, directory.outcome, error, job.details.get("checkpoint_step"))

    def _act(self, job: Job, action: Action) -> None:
        match action:
            case deciding.Submit():
                self._submit(job)
            case deciding.SubmitAgain():
                self._send(job)
            case deciding.Watch(running):
                self._watch(job, running=running)
            case deciding.Stop():
                if not job.details.get("stopping"):
                    self._store.note(job, details={**job.details, "stopping": True})
                self._cluster.stop(job.submission or "")
            case deciding.Release():
                details = {**job.details, "stopping": False}
                self._store.note(job, [News("The cluster is free of it.")], holds_cluster=False, details=details)
                self._follower.forget(job.id)
            case deciding.Succeed():
                self._succeed(job)
            case deciding.Fail(code, message):
                self._fail(job, code, message)
            case deciding.Requeue():
                self._requeue(job, action)

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
        self._held[job.project] += 1
        self._send(seen)

    def _no_room(self, job: Job) -> str | None:
        if job.again_at and time.time() < job.again_at:
            return job.details.get("waiting_for") or "the next attempt"
        limit = self._room.of_project(job.project)
        if limit is not None and self._held[job.project] >= limit:
            return f"{job.project} has {self._held[job.project]} jobs on the cluster, of {limit} it may have"
        if self._held.total() >= self._room.jobs:
            return f"there are {self._held.total()} jobs on the cluster, of {self._room.jobs} it takes"
        return None

    def _send(self, job: Job) -> None:
        try:
            self._cluster.submit(job.submission or "", job.id, job.attempt)
        except ClusterError as error:
            self._waits_for(job, f"the cluster: {error}")
            raise

    def _waits_for(self, job: Job, what: str) -> None:
        if job.details.get("waiting_for") != what:
            self._store.note(job, details={**job.details, "waiting_for": what})

    def _watch(self, job: Job, *, running: bool) -> None:
        if running and job.status == "queued":
            job = self._store.move(job.id, "running", News("Fine-tuning job started."), seen=job)
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id))
        if not running:
            details["waiting_for"] = "the cluster to start it"
        changes: dict[str, Any] = {} if details == job.details else {"details": details}
        if job.seen_at is None:
            changes["seen_at"] = time.time()
        if changes or news:
            self._store.note(job, news, **changes)

    def _succeed(self, job: Job) -> None:
        directory = JobDirectory(self._storage, job.id)
        details, news = self._follower.look(job, directory)
        details |= {"percent": 100.0, "eta_seconds": None}
        outcome = directory.outcome or {}
        news += [News(f"New fine-tuned model created: {outcome['model']}."),
                 News("The job has successfully completed.")]  # fmt: skip
        self._store.move(job.id, "succeeded", *news, seen=job, outcome=outcome, details=details)

    def _fail(self, job: Job, code: str, message: str) -> None:
        details, news = self._follower.look(job, JobDirectory(self._storage, job.id))
        error = {"code": code, "message": message, "param": None}
        news.append(News(message, level="error"))
        self._store.move(job.id, "failed", *news, seen=job, error=error, details=details)

    def _requeue(self, job: Job, action: deciding.Requeue) -> None:
        details = {**job.details, "losses": action.losses, "waiting_for": "the next attempt"}
        changes: dict[str, Any] = {"holds_cluster": False, "again_at": time.time() + action.seconds, "details": details}
        news = News(f"Attempt {job.attempt} was lost ({action.why}); it is tried again.", level="warn")
        if job.status == "running":
            self._store.move(job.id, "queued", news, seen=job, **changes)
        else:
            self._store.note(job, [news], **changes)


def _log(job: Job, error: Exception) -> None:
    match error:
        case ConflictError() | IllegalMoveError():
            logger.debug("%s: %s", job.id, error)  # somebody was faster; the next look sees what they did
        case ClusterError():
            logger.warning("%s: %s", job.id, error)
        case _:
            logger.error("%s: %s", job.id, error)
