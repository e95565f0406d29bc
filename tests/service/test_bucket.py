"""The whole HTTP surface where results go to a bucket and the server's own files lie on its disk."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from bco_ray.config import DataSpec
from bco_ray.control.keys import KeyStore
from bco_ray.errors import SpecError
from bco_ray.pipeline.erase import erase_votes
from bco_ray.pipeline.log import resolve_log
from bco_ray.pipeline.served import serve_args
from bco_ray.service.app import extension
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.http.api import create_api
from bco_ray.serving.http.settings import Settings
from bco_ray.storage import files
from bco_ray.storage.database import open_database
from bco_ray.storage.export import load_manifest, verify_segments
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.feedback_rows import Choice, Completion, Vote
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import Phases

ASKED = [{"role": "user", "content": "q"}]
VOTES = b"".join(
    json.dumps({"prompt": f"q{n}", "completion": "yes", "label": bool(n % 2)}).encode() + b"\n" for n in range(20)
)


@dataclass
class Site:
    app: FastAPI
    log: FeedbackLog
    storage: Any
    state: Path

    @property
    def http(self) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1")


@pytest.fixture
def site(tmp_path: Path, bucket: str, request: pytest.FixtureRequest, no_models: Any) -> Iterator[Site]:
    storage = f"{bucket}/{request.node.name}"
    args = ServiceArgs(model_id="m/1", model_dir=str(tmp_path), storage=storage, state=tmp_path / "state")
    assert (args.storage, args.home) == (files.path_of(storage), tmp_path / "state")
    args.home.mkdir()
    engine, keys, log = open_database(args.home), KeyStore.open(args.home), FeedbackLog.open(args.home)
    app = create_api(no_models, log, Settings.of(args), keys=keys, more=extension(args, engine, keys))
    with TestClient(app):
        yield Site(app, log, args.storage, args.home)
    log.close()


def created(site: Site, training_file: str) -> dict[str, Any]:
    reply = site.http.post("/v1/fine_tuning/jobs", json={"model": "bot", "training_file": training_file})
    assert reply.status_code == 200, reply.text
    with_spec: dict[str, Any] = site.http.get(f"/v1/fine_tuning/jobs/{reply.json()['id']}").json()
    return with_spec


def test_an_upload_lies_where_jobs_find_it(site: Site) -> None:
    upload = {"file": ("votes.jsonl", io.BytesIO(VOTES))}
    stored = site.http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}).json()
    path = site.storage / "files" / stored["id"] / "content.jsonl"
    assert path.read_bytes() == VOTES
    assert site.http.get(f"/v1/files/{stored['id']}/content").content == VOTES
    job = created(site, stored["id"])
    assert job["training_file"] == stored["id"]
    assert site.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").status_code == 200
    assert site.http.delete(f"/v1/files/{stored['id']}").json()["deleted"]
    assert list((site.storage / "files").rglob("*")) == []


def test_votes_up_to_now_are_there_before_a_job_is(site: Site) -> None:
    said = Completion("r1", 1.0, "bot/1", "f", ASKED, [1], [Choice("yes", [2], "stop")], {})
    site.log.add_completion(said)
    site.log.add_vote(Vote(response_id="r1", label=True))
    created(site, "feedback")
    log = resolve_log(DataSpec(feedback=["feedback"]), site.storage)
    assert log.data.feedback == ["feedback:1"]
    assert [source.path.startswith(str(site.storage)) for source in log.sources] == [True]
    assert not (site.state / "feedback").exists()


def test_the_registry_is_the_buckets(site: Site, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    Registry(site.storage).register("bot", tmp_path / "made", {"run": "r"})
    assert site.http.post("/v1/registry/models/bot/promote", json={"version": 1}).status_code == 200
    assert Registry(site.storage).aliases("bot") == {"prod": 1}


def test_a_bucket_alone_is_not_enough_for_a_server(bucket: str) -> None:
    with pytest.raises(ValidationError, match=r"state: s3://.*is no directory"):
        ServiceArgs(follow=["bot"], storage=bucket)
    with pytest.raises(SpecError, match="--state"):
        serve_args("bot", files.path_of(bucket))


def test_a_person_is_erased_in_both(site: Site) -> None:
    for number, user in enumerate(["alice", "bob"]):
        said = Completion(f"r{number}", 1.0, "bot/1", "f", ASKED, [1], [Choice("yes", [2], "stop")], {})
        site.log.add_completion(said)
        site.log.add_vote(Vote(response_id=f"r{number}", label=True, user=user))
    created(site, "feedback")
    gone = erase_votes(site.storage, users=["alice"], ids=[], phases=Phases(quiet=True), state=site.state)
    assert (gone["votes_in_log"], gone["rows_in_segments"]) == (1, 1)
    manifest = load_manifest(site.storage / "feedback")
    verify_segments(site.storage / "feedback", manifest)
    assert manifest.rows == 1
