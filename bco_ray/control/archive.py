"""Copies of jobs where they outlive server and cluster: `<archive>/<job>/`, a directory or an object store.

driver.log     as in the job's directory (storage/job_directory.py), and so are spec.yaml and outcome.json
events.jsonl   all events, the oldest first
job.json       the job as the API shows it; written last

What lies there already is not sent again, whoever sent it: the log, which only grows, is known by its size, the rest is
compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from bco_ray.control import wire
from bco_ray.control.job import Job, JobEvent
from bco_ray.control.jobs import JobStore
from bco_ray.errors import BcoError, ConflictError
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.stores import Store, open_store, put_bytes
from bco_ray.telemetry import logger

_COPIED = ("spec.yaml", "outcome.json")

Sizes = Mapping[str, int]
"""Name -> bytes of what lies in the archive."""


class Archive:
    """`place`: a directory, `s3://` or `gs://`; opened when it is first needed, so jobs go on while it is away."""

    def __init__(self, jobs: JobStore, storage: Path, place: str) -> None:
        self._jobs = jobs
        self._storage = storage
        self._place = place

    def run_once(self) -> None:
        """Jobs that have begun as they are, and for the last time those that have ended; what fails is tried again."""
        begun = [job for job in self._jobs.unsettled() if job.attempt]
        for job in [*begun, *self._jobs.unarchived(self._place)]:
            try:
                self._keep(job)
            except ConflictError as error:
                logger.debug("%s: %s", job.id, error)  # it was taken up again meanwhile
            except (BcoError, OSError) as error:
                logger.error("%s is not in the archive yet: %s", job.id, error)

    @cached_property
    def _store(self) -> Store:
        return open_store(self._place)

    def _keep(self, job: Job) -> None:
        there, directory = self._store.sizes(job.id), JobDirectory(self._storage, job.id)
        self._put_log(directory.log, f"{job.id}/driver.log", there)
        for name in _COPIED:
            if (path := directory.path / name).is_file():
                self._put(f"{job.id}/{name}", path.read_bytes(), there)
        self._put(f"{job.id}/events.jsonl", b"".join(map(_line, self._events(job.id))), there)
        self._put(f"{job.id}/job.json", json.dumps(wire.job(job), indent=2).encode() + b"\n", there)
        if job.finished_at is not None and not job.holds_cluster:
            self._jobs.mark_archived(job, self._place)

    def _put(self, name: str, data: bytes, there: Sizes) -> None:
        if there.get(name) != len(data) or self._store.get(name) != data:
            put_bytes(self._store, name, data)

    def _put_log(self, path: Path, name: str, there: Sizes) -> None:
        """It may grow while it is copied; then the rest comes the next time."""
        if not path.is_file() or there.get(name) == path.stat().st_size:
            return

        def copy(target: Path) -> None:
            shutil.copyfile(path, target)

        self._store.put(name, copy)

    def _events(self, job_id: str) -> Iterator[JobEvent]:
        seq = 0
        while events := self._jobs.events_since(job_id, seq):
            yield from events
            seq = events[-1].seq


def _line(event: JobEvent) -> bytes:
    return json.dumps(wire.event(event)).encode() + b"\n"
