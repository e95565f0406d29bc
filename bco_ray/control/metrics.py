"""What the job service counts: a change of a job is counted by the process that makes it, whichever that is."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bco_ray.control.budget import Spent
from bco_ray.control.job import Job
from bco_ray.control.states import ENDED, MOVES
from bco_ray.control.webhooks import Outcome
from bco_ray.telemetry.meters import Meter, Meters

Trouble = Literal["conflict", "cluster", "other"]
"""Of a look at one job. `conflict`: somebody was faster, which is no harm."""

_QUEUE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0)

JOBS = Meter("bco_jobs", "gauge", "Jobs that have not ended.", ("status",))
OLDEST = Meter("bco_job_oldest_wait_seconds", "gauge", "Since the oldest job that never ran was asked for; 0: none.")
LOSSES = Meter("bco_job_losses_in_a_row", "gauge", "Of the worst job: attempts lost without a new checkpoint.")
CREATED = Meter("bco_jobs_created", "counter", "Jobs accepted.")
STARTED = Meter("bco_jobs_started", "counter", "Jobs that ran for the first time.")
ENDS = Meter("bco_jobs_ended", "counter", "Jobs that ended.", ("result",))
ATTEMPTS = Meter("bco_job_attempts", "counter", "Attempts sent to the cluster.")
LOST = Meter("bco_job_attempts_lost", "counter", "Attempts that ended without an error of their own.")
QUEUED = Meter("bco_job_queue_seconds", "histogram", "From the request to the first run.", buckets=_QUEUE_SECONDS)
GPU_SECONDS = Meter("bco_job_gpu_seconds", "counter", "GPUs times seconds that jobs held them.")
DELIVERIES = Meter("bco_webhook_deliveries", "counter", "Attempts: delivered, failed, given_up.", ("result",))
LOOKS = Meter("bco_reconciler_looks", "counter", "Looks at all jobs that have not ended.")
LOOKED = Meter("bco_reconciler_last_look_timestamp_seconds", "gauge", "When the last look ended, unix time.")
ERRORS = Meter("bco_reconciler_errors", "counter", "Jobs that a look could not settle.", ("kind",))
FREE = Meter("bco_storage_free_bytes", "gauge", "Of the storage directory's file system.")
SIZE = Meter("bco_storage_size_bytes", "gauge", "Of the storage directory's file system.")

METERS = (
    JOBS, OLDEST, LOSSES, CREATED, STARTED, ENDS, ATTEMPTS, LOST, QUEUED, GPU_SECONDS, DELIVERIES, LOOKS, LOOKED,
    ERRORS, FREE, SIZE,
)  # fmt: skip


class JobMetrics:
    """Told what happens, records what follows from it."""

    def __init__(self, meters: Meters) -> None:
        self._record = meters.record

    def changed(self, before: Job | None, after: Job) -> None:
        """A job as it was and as it is stored now; None: it is new."""
        if before is None:
            self._record(CREATED, 1)
            return
        self._record(ATTEMPTS, after.attempt - before.attempt)
        self._record(GPU_SECONDS, Spent.of(after.details).gpu_seconds - Spent.of(before.details).gpu_seconds)
        if before.started_at is None and after.started_at is not None:
            self._record(STARTED, 1)
            self._record(QUEUED, after.started_at - after.created_at)
        if _was_lost(before, after):
            self._record(LOST, 1)
        if after.status in ENDED and before.status not in ENDED:
            self._record(ENDS, 1, result=after.status)

    def looked(self, jobs: Sequence[Job], storage: Path) -> None:
        """At all that have not ended, as they were when the look began."""
        now, open_ones = time.time(), [job for job in jobs if job.status not in ENDED]
        counts = Counter(job.status for job in open_ones)
        for status in MOVES.keys() - ENDED:
            self._record(JOBS, counts[status], status=status)
        never_ran = [now - job.created_at for job in open_ones if job.started_at is None and job.status != "paused"]
        self._record(OLDEST, max(never_ran, default=0.0))
        self._record(LOSSES, max((int(job.details.get("losses", 0)) for job in open_ones), default=0))
        disk = shutil.disk_usage(storage)
        self._record(FREE, disk.free)
        self._record(SIZE, disk.total)
        self._record(LOOKS, 1)
        self._record(LOOKED, now)

    def troubled(self, kind: Trouble) -> None:
        """A look at one job failed."""
        self._record(ERRORS, 1, kind=kind)

    def delivered(self, outcome: Outcome) -> None:
        """An attempt at a webhook's delivery is over."""
        failed = "failed" if outcome.next_at is not None else "given_up"
        self._record(DELIVERIES, 1, result=failed if outcome.delivered_at is None else "delivered")


def _was_lost(before: Job, after: Job) -> bool:
    """`again_at` is set when an attempt is taken back, and by nothing else."""
    gave_up = after.status == "failed" and before.status != "failed" and (after.error or {}).get("code") == "lost"
    return gave_up or (before.again_at is None and after.again_at is not None)
