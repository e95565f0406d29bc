"""`POST /v1/fine_tuning/jobs/estimate`: the body and the refusals of creating a job, and nothing is stored."""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Header
from fastapi.testclient import TestClient

from bco_ray.control.files import FileStore
from bco_ray.control.http import estimate_routes, job_routes
from bco_ray.control.jobs import JobStore
from bco_ray.control.places import Places
from bco_ray.control.service import JobService
from bco_ray.storage.database import open_database
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.web import errors
from bco_ray.web.access import Caller
from bco_ray.web.errors import ApiError

URL = "/v1/fine_tuning/jobs/estimate"
SMALL = {"training": {"max_length": 64, "num_workers": 1, "deepspeed": {"zero_stage": 0}}}

Made = Callable[..., TestClient]


def submit(x_project: str = Header("acme"), x_key: str = Header("key1")) -> Caller:
    if x_project == "readers":
        raise ApiError(403, "This key may only read.", code="insufficient_permissions")
    return Caller(x_key, x_project, "submit", lambda _: True)


def python(code: str) -> Sequence[str]:
    """In the place of the estimate's process."""
    return (sys.executable, "-c", f"import json, os, signal, sys, time; spec = json.load(sys.stdin); {code}")


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(open_database(tmp_path), tmp_path / "files")


@pytest.fixture
def client(tmp_path: Path, files: FileStore) -> Made:
    models = tmp_path / "models"
    jobs = JobStore(open_database(tmp_path))
    service = JobService(jobs, files, tmp_path, tmp_path, Places([str(models)], {"bot"}.__contains__))

    def made(**how: Any) -> TestClient:
        api = FastAPI()
        errors.install(api, job_routes.as_api_error)
        api.include_router(estimate_routes.router(service, submit=submit, **how))
        api.include_router(job_routes.router(service, caller=submit, submit=submit))
        return TestClient(api, raise_server_exceptions=False)

    return made


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(write_tiny_model(tmp_path / "models" / "base"))


def uploaded(files: FileStore) -> str:
    rows = ({"prompt": f"q{n}?", "completion": "yes", "label": n % 2 == 0} for n in range(40))
    return files.add("acme", "votes.jsonl", "fine-tune", [json.dumps(row).encode() + b"\n" for row in rows]).id


def test_an_upload_is_reckoned_and_nothing_is_stored(client: Made, files: FileStore, base: str) -> None:
    body = {"model": base, "training_file": uploaded(files), "spec": SMALL}
    with client() as http:
        reply = http.post(URL, json=body)
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert found["object"] == "fine_tuning.job.estimate"
        assert (found["rows"], found["usable_rows"], found["exact"], found["seconds"]) == (40, 40, True, None)
        assert found["memory"]["total"] > found["memory"]["weights"] > 0
        assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
        refused = http.post(URL, json={**body, "model": base.replace("base", "none")})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_error")


@pytest.mark.parametrize(
    ("changes", "project", "status", "code"),
    [
        ({"spec": {"training": {"seeds": 1}}}, "acme", 400, "invalid_spec"),
        ({"spec": {"output": {}}}, "acme", 400, "unsupported_parameter"),
        ({"model": "/etc"}, "acme", 400, "invalid_spec"),
        ({"training_file": "/etc/passwd"}, "acme", 400, "invalid_spec"),
        ({"priority": "high"}, "acme", 422, "invalid_field"),
        ({}, "other", 404, "not_found"),
        ({}, "readers", 403, "insufficient_permissions"),
    ],
)
def test_what_no_job_may_is_not_reckoned_either(
    client: Made, files: FileStore, tmp_path: Path, changes: Any, project: str, status: int, code: str
) -> None:
    body = {"model": str(tmp_path / "models" / "base"), "training_file": uploaded(files), **changes}
    with client(command=python("sys.exit('it ran')")) as http:
        replies = [http.post(path, json=body, headers={"x-project": project}) for path in (URL, URL.rsplit("/", 1)[0])]
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in replies] == [(status, code)] * 2


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json.gz"])
def test_conversations_without_a_label_are_refused_but_for_the_supervised_method(
    client: Made, files: FileStore, base: str, name: str
) -> None:
    turns = [{"role": "user", "content": "Yes or no?"}, {"role": "assistant", "content": "Yes."}]
    content = b"".join(json.dumps({"messages": turns}).encode() + b"\n" for _ in range(3))
    content = gzip.compress(content) if name.endswith(".gz") else content
    body = {"model": base, "training_file": files.add("acme", name, "fine-tune", [content]).id, "spec": SMALL}
    with client(command=python("print(json.dumps({'format': spec['data']['format']}))")) as http:
        for method in ({}, {"method": {"type": "bco"}}, {"method": {"type": "dpo"}}):
            for path in (URL, URL.rsplit("/", 1)[0]):
                reply = http.post(path, json={**body, **method})
                assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_spec")
                assert 'Send method {"type": "supervised"}' in reply.json()["error"]["message"]
        named = {**body, "spec": {**SMALL, "data": {"format": "openai-chat"}}}
        for accepted in ({**body, "method": {"type": "supervised"}}, named):
            assert http.post(URL, json=accepted).status_code == 200
        assert http.post(URL.rsplit("/", 1)[0], json={**body, "method": {"type": "supervised"}}).status_code == 200


def test_one_that_takes_too_long_is_ended(client: Made, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = python(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with client(command=command, seconds=2.0) as http:
        began = time.monotonic()
        reply = http.post(URL, json={"model": "bot", "training_file": "feedback"})
        assert time.monotonic() - began < 20
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "estimate_timeout")
    assert "bco run SPEC --dry-run" in reply.json()["error"]["message"]
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_key_has_one_at_a_time(client: Made) -> None:
    code = "time.sleep(1); print(json.dumps({}))"
    body = {"model": "bot", "training_file": "feedback"}
    with client(command=python(code)) as http, ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: http.post(URL, json=body), range(2)))
    assert sorted(reply.status_code for reply in replies) == [200, 429]


def test_no_more_than_two_at_once(client: Made, tmp_path: Path) -> None:
    """Each process leaves a file while it runs, and says how many there were."""
    code = (
        f"d = {str(tmp_path)!r}; open(f'{{d}}/{{os.getpid()}}.on', 'w'); time.sleep(0.5); "
        "n = len([f for f in os.listdir(d) if f.endswith('.on')]); "
        "os.remove(f'{d}/{os.getpid()}.on'); print(json.dumps({'running': n}))"
    )
    body = {"model": "bot", "training_file": "feedback"}
    with client(command=python(code)) as http, ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(lambda n: http.post(URL, json=body, headers={"x-key": f"key{n}"}).json(), range(5)))
    assert max(reply["running"] for reply in replies) <= 2


def test_a_process_that_fails_is_the_servers_mistake(client: Made) -> None:
    with client(command=python("sys.exit('secret')")) as http:
        reply = http.post(URL, json={"model": "bot", "training_file": "feedback"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
