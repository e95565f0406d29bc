"""What a submission takes along, and what Ray's Jobs API means by what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.control.ray_jobs import RayJobs
from bco_ray.errors import ClusterError


def asking(tmp_path: Path, error: Exception) -> RayJobs:
    def fails(_: str) -> Any:
        raise error

    jobs = RayJobs(tmp_path)
    jobs.__dict__["_client"] = SimpleNamespace(get_job_status=fails)
    return jobs


def test_unknown_is_what_ray_has_never_heard_of(tmp_path: Path) -> None:
    error = RuntimeError("Request failed with status code 404: Job ftjob-1-1 does not exist.")
    assert asking(tmp_path, error).state("ftjob-1-1") == "unknown"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Request failed with status code 500: ftjob-404a-1: actor does not exist"), OSError("404")],
)
def test_any_other_trouble_says_nothing_of_the_job(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ClusterError):
        asking(tmp_path, error).state("ftjob-404a-1")


def test_a_driver_and_its_workers_know_whose_their_log_lines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> None:
        raise RuntimeError("Request failed with status code 404: Job ftjob-1-2 does not exist")

    sent: dict[str, Any] = {}
    jobs = RayJobs(Path("/storage"))
    vars(jobs)["_client"] = SimpleNamespace(get_job_status=unknown, submit_job=lambda **options: sent.update(options))
    monkeypatch.setenv("BCO_LOG_FORMAT", "json")
    jobs.submit("ftjob-1-2", "ftjob-1", 2)
    assert sent["entrypoint"] == f"{sys.executable} -m bco_ray.pipeline.driver /storage ftjob-1 2"
    assert set(sent) == {"entrypoint", "submission_id", "runtime_env", "metadata"}  # no GPU, no CPU
    assert set(sent["runtime_env"]) == {"env_vars"}
    environment = sent["runtime_env"]["env_vars"]
    assert environment["BCO_LOG_FORMAT"] == "json"
    assert json.loads(environment["BCO_LOG_CONTEXT"]) == {"job_id": "ftjob-1", "attempt": 2}
