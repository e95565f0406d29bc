"""What a request for a job may not say of its spec."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bco_ray.cli.job_request import request_body
from bco_ray.control.requests import JobRequest, spec_of


@pytest.mark.parametrize(
    ("section", "values"),
    [("judge", {"base_url": "http://elsewhere/v1", "model": "m", "api_key_env": "AWS_SECRET_ACCESS_KEY"}),
     ("evaluation", {"regression": "/etc/passwd"}), ("output", {"storage": "/"}), ("name", "x")],
)  # fmt: skip
def test_files_keys_and_places_of_the_servers_own(section: str, values: Any) -> None:
    with pytest.raises(ValidationError, match=f"spec.{section}"):
        JobRequest(model="m", training_file="feedback", spec={section: values})


def test_a_gate_is_a_requests_to_say() -> None:
    request = JobRequest(model="m", training_file="feedback", spec={"gate": {"auc": {"min": 0.6}, "canary": {}}})
    spec = spec_of(request, "ftjob-1", "/s", log="feedback", register_as="bot")
    assert spec.gate is not None
    assert spec.gate.auc is not None
    assert spec.gate.auc.min == 0.6


def test_a_spec_file_leaves_its_judge_at_home(tmp_path: Any) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: bot\nmodel: {base: m}\ndata: {feedback: feedback}\njudge: {rule: shorter}\nevaluation: {samples: 3}\n"
        "gate: {auc: {min: 0.6}}\n"
    )
    body = request_body(path, [], {}, {})
    assert body["spec"] == {"gate": {"auc": {"min": 0.6}}}
    JobRequest(**body)
