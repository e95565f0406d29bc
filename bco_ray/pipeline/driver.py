"""The process that a job of the job service is on the cluster: `python -m bco_ray.pipeline.driver STORAGE JOB ATTEMPT`.

It runs the phases of the job's spec and leaves what came of it in the job's directory. An error that would come again
is written down there; after any other end, the service starts the next attempt, which does only what is left.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bco_ray.config.environment import prepare_environment

prepare_environment()  # before anything imports ray

from bco_ray.config import load_spec  # noqa: E402
from bco_ray.config.load import parse_spec  # noqa: E402
from bco_ray.config.training import first_step  # noqa: E402
from bco_ray.errors import BcoError, ClusterError, InterruptedRunError  # noqa: E402
from bco_ray.pipeline.cluster import cluster_for  # noqa: E402
from bco_ray.pipeline.resolve import resolve  # noqa: E402
from bco_ray.pipeline.resolved import ResolvedJob  # noqa: E402
from bco_ray.pipeline.run import RunOutcome, run_job  # noqa: E402
from bco_ray.pipeline.waiting import looking_out  # noqa: E402
from bco_ray.storage import disk, files  # noqa: E402
from bco_ray.storage.job_directory import JobDirectory  # noqa: E402
from bco_ray.telemetry import Phases, Progress, configure_logging, logger, span  # noqa: E402
from bco_ray.training.metrics import MetricsLog  # noqa: E402

WAIT_SECONDS = 120
"""For the driver before this one to end: its cluster may be gone, and it has not noticed yet."""

_WRITE_SECONDS = 0.5
_STILL_SECONDS = 4.0


def main(storage: Path, job_id: str, attempt: int) -> int:
    """The exit code: 0 done, 130 stopped, else failed."""
    directory = JobDirectory(storage, job_id)
    with _into(directory.log):
        origin = directory.origin
        configure_logging(job_id=job_id, attempt=attempt, **_told(origin))
        logger.info("%s: attempt %d, process %d", job_id, attempt, os.getpid())
        try:
            with files.locked(directory.path / ".driver.lock", busy="another driver runs", seconds=WAIT_SECONDS):
                directory.begin_attempt(attempt)
                trace = span("job attempt", origin.get("traceparent"), {"bco.job": job_id, "bco.attempt": attempt})
                with trace, _own_errors_told(directory, attempt):
                    _run(directory)
        except BcoError as error:
            logger.error("%s", error)
            return error.exit_code
        except Exception:  # noqa: BLE001  the edge of the process; the service decides by the exit
            logger.exception("%s: attempt %d", job_id, attempt)
            return 1
    return 0


def _told(origin: Mapping[str, Any]) -> dict[str, str]:
    """In every line of the log."""
    return {"project": origin["project"]} if "project" in origin else {}


@contextmanager
def _own_errors_told(directory: JobDirectory, attempt: int) -> Iterator[None]:
    """Only inside the lock: who never had its turn, or came too late, knows nothing of the job.

    `again`: it is the cluster's fault, so another attempt may do better.
    """
    try:
        yield
    except BcoError as error:
        if not isinstance(error, InterruptedRunError):
            code = type(error).__name__.removesuffix("Error").lower() + "_error"
            facts = {"attempt": attempt, "code": code, "message": str(error), "again": isinstance(error, ClusterError)}
            directory.write("error", facts)
        raise


def _run(directory: JobDirectory) -> None:
    before = directory.resolved  # of an earlier attempt: aliases and the log may mean something else by now
    job = resolve(parse_spec(before["spec"], where=str(directory.path)) if before else load_spec(directory.spec))
    places = {
        "run": str(job.run_directory), "checkpoints": job.checkpoint_place, "records": job.log.directory.name,
    }  # fmt: skip
    directory.write("resolved", {"spec": job.spec.model_dump(mode="json"), **places})
    configure_logging(run=job.run_directory.name)
    written = _Written(directory)
    with cluster_for(job), looking_out(written.waits_for):
        outcome = run_job(job, Phases(told=written), directory.origin.get("project"))
    directory.write("outcome", _facts(job, outcome))


def _facts(job: ResolvedJob, outcome: RunOutcome) -> dict[str, Any]:
    first = first_step(job.spec.training.start)
    rows = MetricsLog(job.run_directory / "metrics.jsonl").read()
    steps = {row["step"]: row["tokens"] for row in rows if row["step"] >= first}
    return {
        "model": outcome.version.reference,
        "evaluation": outcome.evaluation,
        "votes_read": outcome.scored.read,
        "votes_kept": outcome.scored.kept,
        "drops": outcome.scored.drops,
        "trained_tokens": sum(steps.values()),
    }


class _Written:
    """How far the job is, in its directory, a few times per second at most; a full disk is not its end."""

    def __init__(self, directory: JobDirectory) -> None:
        self._directory = directory
        self._facts: dict[str, Any] = {}
        self._moved = self._at = 0.0
        self._turn = threading.Lock()

    def __call__(self, phase: str, progress: Progress, note: str) -> None:
        """It got on."""
        facts = {
            "phase": phase, "percent": progress.percent, "eta_seconds": progress.eta_seconds, "done": progress.done,
            "total": progress.total, "note": note, "waiting_for": None,
        }  # fmt: skip
        with self._turn:
            self._moved = now = time.time()
            shown, self._facts = self._facts, facts
            anew = phase != shown.get("phase") or shown["waiting_for"] is not None
            if anew or now - self._at >= _WRITE_SECONDS:
                self._write(now)

    def waits_for(self, what: str | None) -> None:
        """What the cluster lacks: somebody else may lack it, so only a phase that stands still waits for it.

        The status of a training says itself what that waits for.
        """
        with self._turn:
            now = time.time()
            still = now - self._moved >= _STILL_SECONDS and self._facts.get("phase") != "train"
            lacks = what if still else None
            if self._facts and self._facts["waiting_for"] != lacks:
                self._facts["waiting_for"] = lacks
                self._write(now)

    def _write(self, now: float) -> None:
        self._at = now
        try:
            self._directory.write("progress", {**self._facts, "at": now})
        except OSError as error:
            logger.warning("progress.json: cannot be written: %s", error)


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """All that this process and its children print goes to the job's log, which outlives the cluster."""
    disk.make_directory(log.parent)
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for before, number in zip(kept, (1, 2), strict=True):
                os.dup2(before, number)
                os.close(before)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
