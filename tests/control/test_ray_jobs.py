"""What Ray's Jobs API says, and what it means."""

from __future__ import annotations

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
