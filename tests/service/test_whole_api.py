"""The whole HTTP surface with keys: who may what, and jobs as the stock client drives them (the training is a fake)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types.fine_tuning import FineTuningJob

from bco_ray.control.deciding import RayState
from bco_ray.control.http.job_routes import MAX_BODY_BYTES
from bco_ray.control.jobs import JobStore
from bco_ray.control.keys import KeyStore, Limits
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.webhooks import WebhookStore
from bco_ray.errors import StorageError
from bco_ray.schema import Message, Record
from bco_ray.service.app import extension, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.http.api import create_api
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.registry import Registry
from bco_ray.testing.checkpoints import write_checkpoint
from bco_ray.testing.records import write_records
from bco_ray.testing.tiny import write_tiny_model

VOTES = b"".join(
    json.dumps({"prompt": f"q{n}", "completion": "yes", "label": bool(n % 2)}).encode() + b"\n" for n in range(20)
)
ENDS = ("", "/events", "/checkpoints", "/logs", "/data", "/quarantine")
OPEN = {"/healthz", "/readyz", "/"}


@dataclass
class Site:
    app: FastAPI
    keys: KeyStore
    storage: Path
    reconciler: Reconciler
    says: dict[str, RayState]
    store: JobStore

    def key(self, role: str, project: str = "acme", **limits: Any) -> str:
        return self.keys.create(project, role, role, limits=Limits(**limits), actor="test")[1]

    def http(self, key: str | None = None) -> TestClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return TestClient(self.app, headers=headers, raise_server_exceptions=False)

    def client(self, key: str) -> openai.OpenAI:
        http: Any = self.http(key)
        return openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0)


ON_BOTH = pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, no_models: Any) -> Iterator[Site]:
    database = request.getfixturevalue("postgresql") if getattr(request, "param", "") == "postgresql" else None
    args = ServiceArgs(
        model_id="m/1", model_dir=tmp_path, storage=tmp_path, database=database, allowed_places=["/models"]
    )
    engine, keys = open_database(tmp_path, database), KeyStore.open(tmp_path, database)
    log = FeedbackLog.open(tmp_path)
    app = create_api(no_models, log, keys=keys, more=extension(args, engine, keys))
    says: dict[str, RayState] = {}
    cluster: Any = SimpleNamespace(
        submit=lambda submission, *_: says.setdefault(submission, "running"),
        state=lambda submission: says.get(submission, "unknown"),
        stop=lambda submission: says.update({submission: "stopped"}),
    )
    store = job_store(engine, WebhookStore(engine))
    with TestClient(app):
        yield Site(app, keys, tmp_path, Reconciler(store, cluster, tmp_path), says, store)
    log.close()


def create(client: openai.OpenAI, **changes: Any) -> Any:
    body = {"model": "/models/base", "training_file": "feedback", **changes}
    return client.fine_tuning.jobs.create(**body)


# --- who may ---------------------------------------------------------------------------------------------------------


def every_route(app: FastAPI) -> list[tuple[str, str]]:
    routes = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(routes) > 30
    return routes


def test_nothing_but_health_answers_without_a_key(site: Site) -> None:
    site.key("admin")
    for method, path in every_route(site.app):
        reply = site.http().request(method, re.sub(r"\{[^}]*\}", "x", path), json={})
        allowed = {200, 503} if path in OPEN else {401, 422} if path == "/v1/feedback" else {401}
        allowed = {404} if path.startswith("/console/") else allowed  # of the page's files none is called that
        assert reply.status_code in allowed, (method, path, reply.text)


def test_a_vote_needs_a_key_or_the_token_that_came_with_the_answer(site: Site) -> None:
    key = site.key("infer")
    vote = {"response_id": "chatcmpl-x", "label": True}
    assert site.http().post("/v1/feedback", json=vote).status_code == 401
    assert site.http().post("/v1/feedback", json={**vote, "feedback_token": "9.x"}).status_code == 403
    assert site.http(key).post("/v1/feedback", json=vote).status_code == 404


@pytest.mark.parametrize(
    ("role", "method", "path", "may"),
    [
        ("infer", "POST", "/v1/chat/completions", True),
        ("infer", "GET", "/v1/fine_tuning/jobs", False),
        ("infer", "GET", "/v1/feedback", False),
        ("infer", "GET", "/metrics", False),
        ("read", "GET", "/v1/fine_tuning/jobs", True),
        ("read", "GET", "/v1/registry/models", True),
        ("read", "POST", "/v1/fine_tuning/jobs", False),
        ("read", "POST", "/v1/files", False),
        ("submit", "POST", "/v1/fine_tuning/jobs", True),
        ("submit", "POST", "/v1/registry/models/m/promote", False),
        ("submit", "POST", "/v1/registry/models/m/canary", False),
        ("admin", "POST", "/v1/registry/models/m/promote", True),
    ],
)
def test_roles(site: Site, role: str, method: str, path: str, may: bool) -> None:
    reply = site.http(site.key(role)).request(method, path, json={})
    assert (reply.status_code == 403) != may, reply.text
    assert reply.status_code < 500
    if not may:
        assert reply.json()["error"]["code"] == "insufficient_permissions"


@ON_BOTH
def test_a_project_sees_its_own_and_nothing_else(site: Site) -> None:
    ours, theirs = site.client(site.key("submit")), site.client(site.key("submit", "rival"))
    job, file = create(ours), ours.files.create(file=("v.jsonl", VOTES), purpose="fine-tune")
    assert [one.id for one in theirs.fine_tuning.jobs.list()] == []
    for path in (f"/v1/fine_tuning/jobs/{job.id}{end}" for end in ENDS):
        reply = site.http(theirs.api_key).get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), path
    for verb in ("cancel", "pause", "resume"):
        assert site.http(theirs.api_key).post(f"/v1/fine_tuning/jobs/{job.id}/{verb}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        create(theirs, training_file=file.id)
    with pytest.raises(openai.NotFoundError):
        theirs.files.content(file.id)
    for place in (f"{site.storage}/files/{file.id}/content.jsonl", f"{site.storage}/bco.db"):
        with pytest.raises(openai.BadRequestError, match="not among the places"):
            create(theirs, training_file=place)
    assert ours.fine_tuning.jobs.retrieve(job.id).status == "validating_files"


def test_the_schema_of_a_request_is_that_of_its_spec_too(site: Site) -> None:
    """All that it lets one say is understood, what it leaves out is refused."""
    http = site.http(site.key("read"))
    said = http.get("/v1/fine_tuning/schema").json()
    assert set(said["spec"]["properties"]) == {"model", "data", "rounds", "scoring", "objective", "training", "gate"}
    assert "base" not in said["spec"]["$defs"]["ModelSpec"]["properties"]
    assert "start" not in said["spec"]["$defs"]["TrainingSpec"]["properties"]
    client = site.client(site.key("submit"))
    for method in said["methods"]:
        create(client, method={"type": method})
    defaults = {
        section: {
            name: kind["default"]
            for name, kind in said["spec"]["$defs"][place["$ref"].rsplit("/", 1)[1]]["properties"].items()
            if "default" in kind and "$ref" not in kind
        }
        for section, place in said["spec"]["properties"].items()
        if "$ref" in place
    }
    assert set(defaults["training"]) > {"learning_rate", "num_workers"}
    create(client, extra_body={"spec": defaults})


def test_the_log_of_a_job_is_told_once_it_was_read(site: Site) -> None:
    """Its numbers to whoever may read, its rows to whoever may train on them; and an upload has no place."""
    client, reader = site.client(site.key("submit")), site.http(site.key("read"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    job = create(client, training_file=file.id)
    url = f"/v1/fine_tuning/jobs/{job.id}"
    assert reader.get(f"{url}/data").json()["error"]["code"] == "log_not_read"
    assert site.http(client.api_key).get(f"{url}/quarantine").json()["error"]["code"] == "log_not_read"
    assert reader.get(f"/v1/fine_tuning/jobs/ftjob-{'0' * 24}/data").json()["error"]["code"] == "not_found"
    records = [votes_row(n, label) for n, label in enumerate((True, True, False))]
    directory = site.storage / "records" / "abc"
    write_records(directory, records, drops={"empty_prompt": 2})
    place = str(site.storage / "files" / file.id / "content.jsonl")
    rows = [
        {"file": place, "position": n, "reason": "empty_prompt", "detail": "no words", "raw": raw}
        for n, raw in enumerate((b'{"a": "\xff"}', "\U0001f600".encode() * 4001))
    ]
    Quarantine(directory / "quarantine" / "import").write((place, 0), 5, rows)
    JobDirectory(site.storage, job.id).write("resolved", {"spec": {}, "run": "", "records": "abc"})
    found = reader.get(f"{url}/data").json()
    assert (found["read"], found["kept"], found["drops"], found["matching"]) == (5, 3, {"empty_prompt": 2}, None)
    assert found["statistics"]["users"]["distinct"] == 0
    assert reader.get(f"{url}/quarantine").status_code == 403
    first = site.http(client.api_key).get(f"{url}/quarantine?limit=1").json()
    rest = site.http(client.api_key).get(f"{url}/quarantine?after={first['last_id']}").json()
    assert (first["has_more"], rest["has_more"], len(rest["data"])) == (True, False, 1)
    assert (rest["data"][0]["raw"], rest["data"][0]["truncated"]) == ("\U0001f600" * 4000, True)
    assert first["data"][0] | {"id": ""} == {
        "id": "", "object": "quarantine.row", "stage": "import", "reason": "empty_prompt", "detail": "no words",
        "file": file.id, "position": 0, "raw": '{"a": "\ufffd"}',
        "truncated": False,
    }  # fmt: skip
    assert site.http(client.api_key).get(f"{url}/quarantine?after=../x:1").status_code == 422
    assert site.http(client.api_key).get(f"{url}/quarantine?reason=none").json()["data"] == []


def votes_row(number: int, label: bool) -> Record:
    said = [Message(role="user", content=f"q{number}")], [Message(role="assistant", content="yes")]
    return Record(id=f"v{number}", prompt=said[0], completion=said[1], label=label)


# --- the life of a job -----------------------------------------------------------------------------------------------


@ON_BOTH
def test_from_upload_to_model(site: Site) -> None:
    client = site.client(site.key("submit"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    method: Any = {"type": "bco", "bco": {"hyperparameters": {"n_epochs": 3, "beta": 0.2}}}
    job = create(
        client, training_file=file.id, method=method, suffix="bot", seed=5, metadata={"team": "a"},
        extra_body={"spec": {"training": {"num_workers": 1}}, "priority": 2},
    )  # fmt: skip
    assert (job.object, job.status, job.training_file, job.seed) == ("fine_tuning.job", "validating_files", file.id, 5)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 128)
    assert job.method.type == "bco"
    site.reconciler.run_once()
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    site.reconciler.run_once()
    site.reconciler.run_once()
    directory = JobDirectory(site.storage, job.id)
    assert str(site.storage / "files" / file.id) in directory.spec.read_text()
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    directory.write("outcome", {"model": "bot/1", "trained_tokens": 9, "evaluation": {"eval_auc": 0.9}})
    site.says[f"{job.id}-1"] = "succeeded"
    site.reconciler.run_once()
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "bot/1", 9)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert messages[0] == "The job has successfully completed."
    assert messages[-1] == "Created fine-tuning job."
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "b"})) == []
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []


@ON_BOTH
def test_lists_come_a_page_at_a_time(site: Site) -> None:
    client = site.client(site.key("submit"))
    made = [create(client).id for _ in range(5)]
    assert [one.id for one in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    run = site.storage / "runs" / "job-1"
    JobDirectory(site.storage, made[0]).write("resolved", {"spec": {}, "run": str(run)})
    for step in (2, 4, 6):
        write_checkpoint(str(run / "checkpoints"), step, identity={})
    assert [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(made[0], limit=2)] == [6, 4, 2]


def test_errors_are_the_clients_own_classes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, unknown = site.client(site.key("submit", queued_jobs=1)), f"ftjob-{'0' * 24}"
    huge = {"metadata": {"a": "b" * MAX_BODY_BYTES}}
    with pytest.raises(openai.AuthenticationError, match="unknown, expired or revoked"):
        site.client("sk-bco-0_0").fine_tuning.jobs.list()
    with pytest.raises(openai.PermissionDeniedError):
        create(site.client(site.key("read")))
    with pytest.raises(openai.NotFoundError):
        submit.fine_tuning.jobs.retrieve(unknown)
    with pytest.raises(openai.BadRequestError):
        create(submit, training_file="/etc/passwd")
    with pytest.raises(openai.UnprocessableEntityError):
        create(submit, extra_body={"runtime_env": {"pip": ["x"]}})
    with pytest.raises(openai.APIStatusError, match="exceeds") as too_large:
        create(submit, **huge)
    assert too_large.value.status_code == 413
    job = create(submit)
    with pytest.raises(openai.ConflictError):
        submit.fine_tuning.jobs.resume(job.id)
    with pytest.raises(openai.RateLimitError, match="jobs waiting"):
        create(submit)
    with monkeypatch.context() as broken:
        broken.setattr("bco_ray.control.jobs.JobStore.get", failing)
        with pytest.raises(openai.InternalServerError, match="try again"):
            submit.fine_tuning.jobs.retrieve(job.id)
    hasty = site.client(site.key("read", requests_per_minute=1))
    hasty.fine_tuning.jobs.list()
    with pytest.raises(openai.RateLimitError, match="1 requests a minute"):
        hasty.fine_tuning.jobs.list()


def failing(*_: Any) -> None:
    raise StorageError("the disk is full")


@ON_BOTH
@pytest.mark.parametrize("text", ["\0", "\ud800"])
def test_what_no_database_holds_is_refused_wherever_it_stands(site: Site, text: str) -> None:
    http = site.http(site.key("submit"))
    body = {"model": "/models/base", "training_file": "feedback"}
    for more in ({"spec": {"data": {"score": text}}}, {"spec": {"data": {"label_map": {text: True}}}},
                 {"metadata": {"a": text}}, {"method": {"type": "bco", "bco": {text: 1}}}, {"model": f"/models/{text}"},
                 {"suffix": text}):  # fmt: skip
        sent = json.dumps({**body, **more}).encode()
        for route in ("jobs", "jobs/estimate"):
            reply = http.post(f"/v1/fine_tuning/{route}", content=sent, headers={"content-type": "application/json"})
            assert reply.status_code == 422, reply.text
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
    job = create(site.client(http.headers["authorization"].removeprefix("Bearer ")))
    assert http.get(f"/v1/fine_tuning/jobs/{job.id}/events?after=%00").status_code in {400, 404}
    for _ in range(3):
        site.reconciler.run_once()
    JobDirectory(site.storage, job.id).write("error", {"attempt": 1, "code": "data_error", "message": f"{text}.csv"})
    site.says[f"{job.id}-1"] = "failed"
    site.reconciler.run_once()
    ended = http.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert (ended["status"], ended["error"]["message"]) == ("failed", f"{ascii(text)[1:-1]}.csv".replace("x00", "0"))


@ON_BOTH
def test_a_file_stays_as_long_as_a_job_needs_it(site: Site) -> None:
    client = site.client(site.key("submit"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    job = create(client, training_file=file.id)
    with pytest.raises(openai.ConflictError, match=f"{job.id} .* is made from it; wait for its end") as raised:
        client.files.delete(file.id)
    assert raised.value.code == "file_in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted


@ON_BOTH
def test_pause_resume_cancel(site: Site) -> None:
    client = site.client(site.key("submit"))
    job = create(client)
    for _ in range(3):
        site.reconciler.run_once()
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    site.reconciler.run_once()
    assert site.says == {f"{job.id}-1": "stopped"}
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    for _ in range(3):
        site.reconciler.run_once()
    assert site.says[f"{job.id}-2"] == "running"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    for steer in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.ConflictError, match="is cancelled and cannot become"):
            steer(job.id)


def retry(client: openai.OpenAI, job_id: str, **body: Any) -> Any:
    return client.post(f"/fine_tuning/jobs/{job_id}/retry", body=body, cast_to=FineTuningJob)


@ON_BOTH
def test_a_job_that_ended_is_done_again_from_a_checkpoint(site: Site) -> None:
    client = site.client(site.key("submit"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    job = create(client, training_file=file.id, suffix="bot", extra_body={"budget": {"hours": 1}})
    with pytest.raises(openai.ConflictError, match="cancel it, and wait"):
        retry(client, job.id)
    client.fine_tuning.jobs.cancel(job.id)
    again = retry(client, job.id, budget={"hours": 2})
    assert (again.training_file, again.budget, again.retried_from) == (
        file.id, {"hours": 2.0}, {"job": job.id, "step": None}
    )  # fmt: skip
    run = site.storage / "runs" / "job-1"
    resolved = {**job.spec, "training": {**job.spec["training"], "learning_rate": 1e-6}}
    JobDirectory(site.storage, job.id).write("resolved", {"spec": resolved, "run": str(run)})
    for step in (2, 4):
        write_checkpoint(str(run / "checkpoints"), step, identity={})
    assert retry(client, job.id).spec["training"]["start"] == "job-1:4"
    changed = retry(client, job.id, step=2, spec={"training": {"learning_rate_multiplier": 0.5}})
    training = changed.spec["training"]
    assert (training["start"], training["learning_rate"], training["learning_rate_multiplier"]) == (
        "job-1:2",
        1e-6,
        0.5,
    )
    assert (changed.budget, changed.user_provided_suffix) == ({"hours": 1.0}, "bot")
    assert retry(client, job.id, budget=None).budget is None
    with pytest.raises(openai.APIStatusError) as too_large:
        retry(client, job.id, metadata={"a": "b" * MAX_BODY_BYTES})
    assert too_large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="no checkpoint of step 3; it has 4, 2"):
        retry(client, job.id, step=3)
    with pytest.raises(openai.BadRequestError, match="spec.training.seed: a checkpoint depends on it"):
        retry(client, job.id, spec={"training": {"seed": 1}})
    with pytest.raises(openai.BadRequestError, match="training.checkpoint.storage: /etc: not among the places"):
        retry(client, job.id, spec={"training": {"checkpoint": {"storage": "/etc"}}})
    with pytest.raises(openai.UnprocessableEntityError):
        retry(client, job.id, spec={"output": {"storage": "/"}})
    with pytest.raises(openai.NotFoundError):
        retry(site.client(site.key("submit", "other")), job.id)
    for one in client.fine_tuning.jobs.list():
        if one.status != "cancelled":
            client.fine_tuning.jobs.cancel(one.id)
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError, match="no such file"):
        retry(client, job.id)


def test_a_deadline_that_has_passed_is_not_kept_silently(site: Site) -> None:
    client = site.client(site.key("submit"))
    job = create(client, extra_body={"budget": {"deadline": 1000}})
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="has passed; send another one") as raised:
        retry(client, job.id)
    assert raised.value.param == "budget"
    assert retry(client, job.id, budget={"hours": 1}).budget == {"hours": 1.0}


@ON_BOTH
def test_a_key_that_has_used_up_its_gpu_hours_starts_nothing_more(site: Site) -> None:
    client, other = (site.client(site.key("submit", **more)) for more in ({"gpu_hours_per_month": 2}, {}))
    headers = {"Idempotency-Key": "k"}
    paused, ended = create(client, extra_headers=headers), create(client)
    client.fine_tuning.jobs.cancel(ended.id)
    site.reconciler.run_once()
    client.fine_tuning.jobs.pause(paused.id)
    seen = site.store.get(paused.id)
    used = {"month": f"{datetime.now(UTC):%Y-%m}", "month_gpu_seconds": 7200.0}
    site.store.note(seen, details={**seen.details, "spent": used})
    tries = {
        "create": lambda: create(client),
        "retry": lambda: retry(client, ended.id),
        "resume": lambda: client.fine_tuning.jobs.resume(paused.id),
        "resume by another": lambda: other.fine_tuning.jobs.resume(paused.id),
    }
    for what, start in tries.items():
        with pytest.raises(openai.RateLimitError, match="have used 2 GPU-hours in") as raised:
            start()
        assert (raised.value.code, raised.value.type) == ("insufficient_quota",) * 2, what
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert int(raised.value.response.headers["retry-after"]) > 0
    assert create(client, extra_headers=headers).id == paused.id, "made before"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.resume(ended.id)
    retry(other, ended.id)
    create(other)


@ON_BOTH
def test_a_key_fills_its_project_up_to_its_quota(site: Site) -> None:
    client = site.client(site.key("submit", upload_bytes=len(VOTES)))
    client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    with pytest.raises(openai.RateLimitError, match="Delete files that are not needed") as raised:
        client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    assert (raised.value.code, raised.value.type) == ("insufficient_quota",) * 2
    site.client(site.key("submit")).files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")


def test_a_name_is_of_the_project_that_registered_it_first(site: Site, tmp_path: Path) -> None:
    registry, model = Registry(site.storage), write_tiny_model(tmp_path / "made")
    for name, project in (("ours", "acme"), ("theirs", "rival"), ("nobodys", None), ("local", "default")):
        registry.register(name, model, {"run": name, "project": project})
    registry.register("ours", model, {"run": "later", "project": None})
    key = site.key("submit")
    client = site.client(key)
    for name in ("ours", "nobodys", "local", "new"):
        job = create(client, suffix=name)
    create(client, model="theirs/1", suffix="new")
    body = {"model": "/models/base", "training_file": "feedback", "suffix": "theirs"}
    for refused in (body, {**body, "model": "theirs/1", "suffix": None}):
        for path in ("", "/estimate"):
            reply = site.http(key).post(f"/v1/fine_tuning/jobs{path}", json=refused)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (403, "model_of_another_project", "suffix")
            assert "Send another suffix" in error["message"]
    client.fine_tuning.jobs.cancel(job.id)
    registry.register("new", model, {"run": "theirs too", "project": "rival"})
    with pytest.raises(openai.PermissionDeniedError, match="another project's model"):
        retry(client, job.id)


def test_a_create_that_is_sent_again_is_answered_though_its_file_is_gone(site: Site) -> None:
    client = site.client(site.key("submit"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    headers = {"Idempotency-Key": "k"}
    job = create(client, training_file=file.id, extra_headers=headers)
    client.fine_tuning.jobs.cancel(job.id)
    client.files.delete(file.id)
    assert create(client, training_file=file.id, extra_headers=headers).id == job.id


@pytest.mark.parametrize("own", [{"hyperparameter": {"n_epochs": 9}}, {"hyperparameters": {}, "x": 1}, [], "x"])
def test_a_methods_settings_have_no_other_names(site: Site, own: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        create(site.client(site.key("submit")), method={"type": "bco", "bco": own})


@ON_BOTH
def test_a_key_has_a_limit_of_waiting_jobs(site: Site) -> None:
    client = site.client(site.key("submit", queued_jobs=2))
    create(client)
    create(client)
    with pytest.raises(openai.RateLimitError, match="this key has 2 jobs waiting, of 2"):
        create(client)
    create(site.client(site.key("submit")))


def test_the_multiplier_is_told_and_meant(site: Site) -> None:
    client = site.client(site.key("submit"))
    job = create(client, hyperparameters={"learning_rate_multiplier": 2})
    assert job.hyperparameters.learning_rate_multiplier == 2
    assert job.spec["training"]["learning_rate_multiplier"] == 2


@ON_BOTH
def test_a_retried_create_is_the_same_job(site: Site) -> None:
    client = site.client(site.key("submit"))
    headers = {"Idempotency-Key": "k"}
    assert create(client, extra_headers=headers).id == create(client, extra_headers=headers).id
    with pytest.raises(openai.ConflictError) as raised:
        create(client, seed=4, extra_headers=headers)
    assert raised.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"training_file": f"file-{'0' * 24}"}, openai.NotFoundError, "no such file"),
        ({"model": "/etc/passwd"}, openai.BadRequestError, "model.base: /etc/passwd: not among the places"),
        ({"model": "/models/../etc"}, openai.BadRequestError, "not among the places"),
        ({"training_file": "/etc/*"}, openai.BadRequestError, "data.feedback.0: /etc/"),
        ({"training_file": "votes.jsonl"}, openai.BadRequestError, "not among the places"),
        (
            {"extra_body": {"spec": {"training": {"deepspeed": "/etc/x.json"}}}},
            openai.BadRequestError,
            "no file of the server",
        ),
        ({"training_file": "s3://bucket/votes"}, openai.BadRequestError, "not among the places"),
        ({"method": {"type": "ppo"}}, openai.BadRequestError, "method.type: ppo: there are bco"),
        ({"validation_file": "file-1"}, openai.BadRequestError, "validation_file: votes are held out"),
        ({"integrations": [{"type": "wandb"}]}, openai.BadRequestError, "integrations"),
        (
            {"extra_body": {"spec": {"output": {"storage": "/"}}}},
            openai.BadRequestError,
            "spec.output: is the",
        ),
        ({"extra_body": {"spec": {"name": "x"}}}, openai.BadRequestError, "spec.name: is the job's id"),
        ({"extra_body": {"spec": {"traning": {}}}}, openai.BadRequestError, "did you mean training"),
        (
            {"extra_body": {"spec": {"scoring": {"classifier": "/etc/x.json"}}}},
            openai.BadRequestError,
            "scoring.c",
        ),
        ({"extra_body": {"spec": 3}}, openai.UnprocessableEntityError, "spec"),
        ({"extra_body": {"entrypoint": "rm"}}, openai.UnprocessableEntityError, "entrypoint"),
        ({"suffix": "../x"}, openai.UnprocessableEntityError, "suffix"),
        (
            {"method": {"type": "bco", "bco": {"hyperparameters": {"beta": -1}}}},
            openai.UnprocessableEntityError,
            "beta",
        ),
        ({"extra_body": {"spec": {"training": {"start": "another-run:3"}}}}, openai.BadRequestError, "retry the job"),
        (
            {"extra_body": {"spec": {"training": {"deepspeed": {"config": "/etc/x.json"}}}}},
            openai.BadRequestError,
            "no file of the server",
        ),
        (
            {"extra_body": {"spec": {"training": {"deepspeed": {"flops_profiler": {"output_file": "/x"}}}}}},
            openai.BadRequestError,
            "deepspeed.flops_profiler: it may write",
        ),
        (
            {
                "extra_body": {
                    "spec": {
                        "training": {
                            "deepspeed": {
                                "zero_optimization": {
                                    "stage": 3,
                                    "offload_param": {"device": "nvme", "nvme_path": "/x"},
                                }
                            }
                        }
                    }
                }
            },
            openai.BadRequestError,
            "deepspeed.nvme_path: it may write",
        ),
        (
            {"extra_body": {"spec": {"training": {"checkpoint": {"storage": "feedback"}}}}},
            openai.BadRequestError,
            "training.checkpoint.storage: feedback: not among the places",
        ),
        ({"training_file": "file-nope"}, openai.NotFoundError, "file-nope: no such file"),
        (
            {"method": {"type": "bco", "kto": {"hyperparameters": {"n_epochs": 1}}}},
            openai.BadRequestError,
            "method.kto: the settings of method.type bco are under its own name",
        ),
        ({"extra_body": {"spec": {"model": {"base": "x"}}}}, openai.BadRequestError, "is the request's model"),
        ({"model": "gpt2"}, openai.BadRequestError, "model.base: gpt2: not among the places"),
        ({"training_file": "feedback:x"}, openai.BadRequestError, "not among the places"),
        ({"extra_body": {"budget": {"hours": 0}}}, openai.UnprocessableEntityError, "budget.hours"),
    ],
)
def test_what_cannot_be_is_said_at_once(site: Site, changes: Any, error: type[Exception], says: str) -> None:
    client = site.client(site.key("submit"))
    with pytest.raises(error, match=re.escape(says)):
        create(client, **changes)
    assert list(client.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_a_number_that_is_none_makes_no_job(site: Site, number: str) -> None:
    key = site.key("submit")
    headers = {"content-type": "application/json"}
    for training in (f'{{"weight_decay": {number}}}', f'{{"deepspeed": {{"bf16": {{"x": {number}}}}}}}'):
        body = f'{{"model": "/models/base", "training_file": "feedback", "spec": {{"training": {training}}}}}'
        assert site.http(key).post("/v1/fine_tuning/jobs", content=body, headers=headers).status_code == 400
    assert site.http(key).get("/v1/fine_tuning/jobs").json()["data"] == []


def test_a_retry_reads_no_file_of_the_server(site: Site, tmp_path: Path) -> None:
    client = site.client(site.key("submit"))
    job = create(client)
    client.fine_tuning.jobs.cancel(job.id)
    (tmp_path / "secret.json").write_text('{"client_secret": "TOP"}')
    for deepspeed in (str(tmp_path / "secret.json"), {"config": str(tmp_path / "secret.json")}):
        with pytest.raises(openai.BadRequestError, match="no file of the server") as raised:
            retry(client, job.id, spec={"training": {"deepspeed": deepspeed}})
        assert "TOP" not in str(raised.value)


def test_a_job_shows_no_place_of_the_server(site: Site) -> None:
    client = site.client(site.key("submit"))
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    job = create(client, training_file=file.id)
    assert job.spec["data"]["feedback"] == [file.id]
    assert str(site.storage) not in job.model_dump_json()


def test_a_log_is_followed_to_the_end_of_the_job(site: Site) -> None:
    client = site.client(site.key("submit"))
    job = create(client)
    site.reconciler.run_once()
    directory = JobDirectory(site.storage, job.id)
    directory.log.write_bytes(b"one\n")
    assert site.http(client.api_key).get(f"/v1/fine_tuning/jobs/{job.id}/logs").text == "one\n"
    client.fine_tuning.jobs.cancel(job.id)
    reply: httpx.Response = site.http(client.api_key).get(
        f"/v1/fine_tuning/jobs/{job.id}/logs", params={"follow": True}
    )
    assert (reply.text, reply.headers["content-type"]) == ("one\n", "text/plain; charset=utf-8")
    rest = site.http(client.api_key).get(f"/v1/fine_tuning/jobs/{job.id}/logs", params={"offset": 2})
    assert (rest.text, rest.headers["x-log-offset"]) == ("e\n", "2")
    for last, text, start in ((3, "ne\n", "1"), (9, "one\n", "0")):
        end = site.http(client.api_key).get(f"/v1/fine_tuning/jobs/{job.id}/logs", params={"offset": -last})
        assert (end.text, end.headers["x-log-offset"]) == (text, start)


def test_only_newer_events(site: Site) -> None:
    client = site.client(site.key("submit"))
    job = create(client)
    path, http = f"/v1/fine_tuning/jobs/{job.id}/events", site.http(client.api_key)
    first = http.get(path).json()["data"][0]["id"]
    assert http.get(path, params={"before": first}).json()["data"] == []
    for _ in range(3):
        site.reconciler.run_once()
    client.fine_tuning.jobs.cancel(job.id)
    everything = [one["id"] for one in http.get(path).json()["data"]]
    fresh = everything[: everything.index(first)]
    page = http.get(path, params={"before": first, "limit": 1}).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (fresh[:1], len(fresh) > 1)
    rest = http.get(path, params={"before": first, "after": fresh[0]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (fresh[1:], False)
    wrong = http.get(path, params={"before": "ftevent-nope"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "before")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "gpt2"}, "model"),
        ({"training_file": "feedback:x"}, "training_file"),
        ({"spec": {"training": {"max_length": -1}}}, "spec.training.max_length"),
        ({"spec": {"objective": {"loss": "nope"}}}, "spec.objective.loss"),
        ({"spec": {"model": {"reference": "/etc"}}}, "spec.model.reference"),
        ({"budget": {"hours": 0}}, "budget.hours"),
    ],
)
def test_a_refusal_names_the_field(site: Site, changes: Any, param: str) -> None:
    body = {"model": "/models/base", "training_file": "feedback", **changes}
    reply = site.http(site.key("submit")).post("/v1/fine_tuning/jobs", json=body)
    assert (reply.status_code // 100, reply.json()["error"]["param"]) == (4, param)


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs?after=x", "/v1/fine_tuning/jobs/{}/events?after=x",
                                  "/v1/fine_tuning/jobs/{}/checkpoints?after=x"])  # fmt: skip
def test_an_unknown_place_in_a_list_is_a_mistake(site: Site, path: str) -> None:
    client = site.client(site.key("submit"))
    reply = site.http(client.api_key).get(path.format(create(client).id))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "after")


# --- who did what ----------------------------------------------------------------------------------------------------


def audit(site: Site, key: str, **query: Any) -> list[tuple[str, str, str]]:
    reply = site.http(key).get("/v1/audit", params=query)
    assert reply.status_code == 200, reply.text
    return [(entry["actor"], entry["action"], entry["target"]) for entry in reply.json()["data"]]


def id_of(key: str) -> str:
    return key.removeprefix("sk-bco-").partition("_")[0]


def test_what_is_done_is_written_down(site: Site) -> None:
    admin, key = site.key("admin"), site.key("submit")
    client, http = site.client(key), site.http(key)
    file = client.files.create(file=("votes.jsonl", VOTES), purpose="fine-tune")
    job = create(client, suffix="bot", extra_headers={"Idempotency-Key": "k"})
    create(client, suffix="bot", extra_headers={"Idempotency-Key": "k"})  # the same one
    site.reconciler.run_once()
    for steer in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume, client.fine_tuning.jobs.cancel):
        steer(job.id)
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(job.id)
    asked = {"url": "https://93.184.216.34/hook?token=private", "events": ["fine_tuning.job.failed"]}
    hook = http.post("/v1/webhooks", json=asked).json()
    assert http.delete(f"/v1/webhooks/{hook['id']}").is_success
    client.files.delete(file.id)
    me = id_of(key)
    assert audit(site, admin, actor=me) == [
        (me, "file.delete", file.id), (me, "webhook.delete", hook["id"]), (me, "webhook.create", hook["id"]),
        (me, "job.cancel", job.id), (me, "job.resume", job.id), (me, "job.pause", job.id), (me, "job.create", job.id),
        (me, "file.upload", file.id),
    ]  # fmt: skip
    entries = site.http(admin).get("/v1/audit", params={"limit": 100}).text
    assert "private" not in entries
    assert hook["secret"] not in entries
    (made,) = site.http(admin).get("/v1/audit", params={"action": "job.create"}).json()["data"]
    assert made["facts"] == {"model": "/models/base", "training_file": "feedback", "suffix": "bot"}


def test_moves_of_a_models_name_are_written_down(site: Site) -> None:
    registry, admin = Registry(site.storage), site.key("admin")
    for seed in (1, 2):
        registry.register("bot", write_tiny_model(site.storage / f"made-{seed}", seed=seed), {})
    http = site.http(admin)
    moves: list[tuple[str, dict[str, Any]]] = [
        ("promote", {"version": 1}), ("promote", {"version": 2}), ("promote", {"version": 2, "alias": "candidate"}),
        ("canary", {"percent": 10}), ("rollback", {"expected": 2}),
    ]  # fmt: skip
    for verb, body in moves:
        assert http.post(f"/v1/registry/models/bot/{verb}", json=body).is_success
    assert http.post("/v1/registry/models/bot/promote", json={"version": 9}).status_code == 404
    told = [entry for entry in http.get("/v1/audit").json()["data"] if entry["target"] == "bot"][::-1]
    assert [(entry["action"], entry["facts"]) for entry in told] == [
        ("model.promote", {"alias": "prod", "version": 1, "was": None}),
        ("model.promote", {"alias": "prod", "version": 2, "was": 1}),
        ("model.promote", {"alias": "candidate", "version": 2, "was": None}),
        ("model.canary", {"percent": 10.0}),
        ("model.rollback", {"alias": "prod", "version": 1, "was": 2}),
    ]


def test_a_move_that_cannot_be_written_down_is_still_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    registry = Registry(site.storage)
    registry.register("bot", write_tiny_model(site.storage / "made", seed=1), {})
    monkeypatch.setattr("bco_ray.control.audit.AuditLog.record", full)
    assert site.http(site.key("admin")).post("/v1/registry/models/bot/promote", json={"version": 1}).is_success
    assert registry.aliases("bot") == {"prod": 1}
    assert "not in the audit log" in caplog.text
    assert "model.promote to bot" in caplog.text


def test_the_audit_log_is_the_admins_and_of_their_project(site: Site) -> None:
    ours, theirs = site.key("admin"), site.key("admin", "rival")
    assert site.http(site.key("submit")).get("/v1/audit").status_code == 403
    made = {actor: create(site.client(key)).id for key in (ours, theirs) for actor in [id_of(key)]}
    for key in (ours, theirs):
        me = id_of(key)
        assert audit(site, key, action="job.create") == [(me, "job.create", made[me])]
        keys = [target for _, action, target in audit(site, key) if action == "key.create"]
        assert me in keys
        assert not (set(made) - {me}) & set(keys)


@ON_BOTH
def test_the_audit_log_a_page_at_a_time(site: Site) -> None:
    admin = site.key("admin")
    made = [create(site.client(admin)).id for _ in range(3)]
    first = site.http(admin).get("/v1/audit", params={"limit": 2}).json()
    assert (first["object"], first["has_more"]) == ("list", True)
    assert [entry["target"] for entry in first["data"]] == made[:0:-1]
    assert audit(site, admin, after=first["last_id"], limit=1) == [(id_of(admin), "job.create", made[0])]
    for wrong in ({"after": "x"}, {"after": "audit-"}, {"limit": 0}, {"actor": "a\0"}, {"action": ""}):
        assert site.http(admin).get("/v1/audit", params=wrong).status_code == 422
