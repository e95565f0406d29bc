"""What a submission takes along."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.control.ray_jobs import RayJobs


def test_a_driver_and_its_workers_know_whose_their_log_lines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> None:
        raise RuntimeError("Job ftjob-1-2 does not exist")

    sent: dict[str, Any] = {}
    jobs = RayJobs(Path("/storage"))
    vars(jobs)["_client"] = SimpleNamespace(get_job_status=unknown, submit_job=lambda **options: sent.update(options))
    monkeypatch.setenv("BCO_LOG_FORMAT", "json")
    jobs.submit("ftjob-1-2", "ftjob-1", 2)
    environment = sent["runtime_env"]["env_vars"]
    assert environment["BCO_LOG_FORMAT"] == "json"
    assert json.loads(environment["BCO_LOG_CONTEXT"]) == {"job_id": "ftjob-1", "attempt": 2}
