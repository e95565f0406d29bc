"""The door to Ray's Jobs API: a job's attempt is a submission there, whose id makes it one however often it is sent."""

from __future__ import annotations

import shlex
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from bco_ray.control.deciding import RayState
from bco_ray.errors import ClusterError
from bco_ray.telemetry import logs

STOP_SECONDS = 60
"""What a driver may take for its last checkpoint; Ray itself would kill it after three."""

_STATES: dict[JobStatus, RayState] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


class Cluster(Protocol):
    """Where drivers run. Every method raises ClusterError if it cannot be asked just now."""

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        """Start the driver of this attempt, if no submission of that name has been."""

    def state(self, submission: str) -> RayState:
        """What became of it."""

    def stop(self, submission: str) -> None:
        """Ask the driver to end, with a checkpoint."""


class RayJobs:
    """The cluster this process is connected to. The command is ours alone: nothing a user says is part of it."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        """See `Cluster.submit`. The driver takes no GPU: its workers do."""
        if self.state(submission) != "unknown":
            return
        driver = [sys.executable, "-m", "bco_ray.pipeline.driver", str(self._storage), job_id, str(attempt)]
        environment = {
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            "PYTHONSAFEPATH": "1",
            **logs.environment(job_id=job_id, attempt=attempt),
        }
        self._ask(
            "submit_job", entrypoint=shlex.join(driver), submission_id=submission,
            runtime_env={"env_vars": environment}, metadata={"job": job_id, "attempt": str(attempt)},
        )  # fmt: skip

    def state(self, submission: str) -> RayState:
        """See `Cluster.state`."""
        try:
            return _STATES[self._client.get_job_status(submission)]
        except RuntimeError as error:
            if str(error).startswith("Request failed with status code 404"):
                return "unknown"
            raise ClusterError(f"Ray's Jobs API: {error}") from error
        except OSError as error:  # requests' own, and ours from _client
            raise ClusterError(f"Ray's Jobs API: {error}") from error

    def stop(self, submission: str) -> None:
        """See `Cluster.stop`."""
        self._ask("stop_job", submission)

    def _ask(self, method: str, *args: Any, **options: Any) -> None:
        try:
            getattr(self._client, method)(*args, **options)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"Ray's Jobs API: {str(error).splitlines()[0]}") from error

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return JobSubmissionClient(cluster_address())


def cluster_address() -> str:
    """Of the cluster this process is connected to (Ray would start one for a process that is not)."""
    address: str = ray.get_runtime_context().gcs_address
    return address


def cluster_session() -> str:
    """The cluster itself: the heads of two may have the same address, each on a network of its own."""
    name: str = ray.get_runtime_context().get_session_name()
    return f"{cluster_address()} {name}"


def stop_running(seconds: float) -> int:
    """Ask all drivers of jobs on this cluster to end with a checkpoint, wait so long at most, and say how many ran."""
    client = JobSubmissionClient(cluster_address())
    running = [one.submission_id for one in client.list_jobs() if one.metadata and "attempt" in one.metadata
               and not one.status.is_terminal()]  # fmt: skip
    for submission in running:
        client.stop_job(submission)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(client.get_job_status(one).is_terminal() for one in running):
        time.sleep(0.5)
    return len(running)
