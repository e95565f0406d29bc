"""`/v1/registry/...`: what is registered, and moving its names, with errors that say which and why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bco_ray.serving.http import evaluation_routes
from bco_ray.serving.http.registry_replies import RegisteredEvaluation
from bco_ray.serving.http.registry_routes import router
from bco_ray.storage import files
from bco_ray.storage import registry as registries
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.storage.trials import Trials
from bco_ray.testing.evaluations import made_evaluation
from bco_ray.web import errors
from bco_ray.web.access import NO_KEYS, Access, RequestRate


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "m").mkdir()
    found = Registry(tmp_path)
    for run in "abc":
        found.register("bot", tmp_path / "m", {"run": run, "votes": {"read": 3, "kept": 2}})
    return found


@pytest.fixture
def client(registry: Registry) -> Iterator[TestClient]:
    api = FastAPI()
    errors.install(api)
    api.add_middleware(Access, find=NO_KEYS.find, configured=NO_KEYS.any, rate=RequestRate())
    api.include_router(router(registry))
    api.include_router(evaluation_routes.router(registry))
    with TestClient(api, "http://127.0.0.1") as found:
        yield found


def post(client: TestClient, path: str, **body: Any) -> tuple[int, Any]:
    reply = client.post(f"/v1/registry/models/{path}", json=body)
    return reply.status_code, reply.json()


def test_a_model_its_versions_and_its_names(client: TestClient) -> None:
    post(client, "bot/promote", version=2)
    post(client, "bot/promote", version=3, alias="candidate")
    status, model = post(client, "bot/canary", percent=12.5)
    assert status == 200
    assert model["aliases"] == {"prod": 2, "candidate": 3}
    assert model["canary"] == {"alias": "candidate", "percent": 12.5}
    assert [(v["id"], v["run"], v["aliases"]) for v in model["versions"]] == [
        ("bot/1", "a", []), ("bot/2", "b", ["prod"]), ("bot/3", "c", ["candidate"]),
    ]  # fmt: skip
    assert model["versions"][0]["votes"] == {"read": 3, "kept": 2}
    assert len(model["history"]) == 3
    assert client.get("/v1/registry/models/bot").json() == model
    assert client.get("/v1/registry/models").json()["data"] == [model]
    assert post(client, "bot/canary", percent=0)[1]["canary"] is None


def test_where_an_alias_goes_back_to_is_told(client: TestClient, registry: Registry) -> None:
    assert post(client, "bot/promote", version=1)[1]["before"] == {}
    post(client, "bot/promote", version=1, alias="candidate")
    assert post(client, "bot/promote", version=2)[1]["before"] == {"prod": 1}
    assert post(client, "bot/rollback")[1]["before"] == {}
    assert post(client, "bot/promote", version=2)[1]["before"] == {"prod": 1}
    shutil.rmtree(registry.get("bot", 1).directory)
    assert client.get("/v1/registry/models/bot").json()["before"] == {}, "that version is gone"


def test_prod_has_a_gate_with_all_reasons_and_force_is_audited(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    registry = Registry(tmp_path)
    registry.register("bot", tmp_path / "m", {"run": "a", "gate": {"auc": {"min": 0.65}, "regression": "all"}})
    deeds: list[tuple[str, dict[str, Any]]] = []
    api = FastAPI()
    errors.install(api)
    api.add_middleware(Access, find=NO_KEYS.find, configured=NO_KEYS.any, rate=RequestRate())
    api.include_router(router(registry, lambda who, action, target, **facts: deeds.append((action, facts))))
    with TestClient(api, "http://127.0.0.1") as client:
        status, body = post(client, "bot/promote", version=1)
        assert (status, body["error"]["code"]) == (409, "gate_refused")
        assert "it was never evaluated" in body["error"]["message"]
        registry.evaluations("bot").add(1, made_evaluation("bot/1"), {})
        message = post(client, "bot/promote", version=1)[1]["error"]["message"]
        assert "auc: lower bound 0.6" in message
        assert "1 of 2 prompts failed (hours)" in message
        assert post(client, "bot/promote", version=1, alias="candidate")[0] == 200
        status, model = post(client, "bot/promote", version=1, force=True)
        assert status == 200
    (version,) = model["versions"]
    assert (version["evaluations"], version["gate"]["passes"], len(version["gate"]["reasons"])) == (1, False, 2)
    assert model["history"][-1]["forced"] == version["gate"]["reasons"]
    assert [(action, facts.get("forced")) for action, facts in deeds] == [
        ("model.promote", None), ("model.promote", version["gate"]["reasons"]),
    ]  # fmt: skip


def test_a_damaged_evaluation_refuses_and_hides_nothing(client: TestClient, registry: Registry) -> None:
    place = registry.evaluations("bot").add(2, made_evaluation("bot/2", gate={"auc": {"min": 0.1}}), {})
    (place / "evaluation.json").write_text("{")
    found = {v["version"]: v["gate"] for v in client.get("/v1/registry/models/bot").json()["versions"]}
    assert found[1] is None
    assert found[2]["passes"] is False
    assert "not valid JSON" in found[2]["reasons"][0]


def test_a_canary_shows_its_thumbs(registry: Registry, tmp_path: Path) -> None:
    trials = Trials(registry, FeedbackLog.open(tmp_path).engine)
    api = FastAPI()
    errors.install(api)
    api.add_middleware(Access, find=NO_KEYS.find, configured=NO_KEYS.any, rate=RequestRate())
    api.include_router(router(registry, trial_of=trials.of))
    with TestClient(api, "http://127.0.0.1") as client:
        post(client, "bot/promote", version=1)
        assert post(client, "bot/promote", version=2, alias="candidate")[1]["trial"] is None
        trial = post(client, "bot/canary", percent=10)[1]["trial"]
        assert (trial["candidate"]["model"], trial["prod"]["model"]) == ("bot/2", "bot/1")
        assert trial["confidence"] == 0.95
        assert (trial["difference"], trial["automatic"]) == ({"low": -1.0, "high": 1.0}, False)
        place = registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
        (place / "evaluation.json").write_text("{")
        assert client.get("/v1/registry/models/bot").json()["trial"] is None


def test_moves_need_json(client: TestClient) -> None:
    """What a page can send without a preflight is none."""
    for version in (1, 2):
        post(client, "bot/promote", version=version)
    for path, content in (("rollback", "{}"), ("promote", '{"version": 1}'), ("canary", '{"percent": 0}')):
        for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
            assert client.post(f"/v1/registry/models/bot/{path}", content=content, headers=kind).status_code == 422
    assert client.post("/v1/registry/models/bot/rollback").status_code == 422
    assert post(client, "bot/rollback")[1]["aliases"] == {"prod": 1}


def test_a_rollback_from_where_the_alias_was_seen(client: TestClient) -> None:
    for version in (1, 2, 3):
        post(client, "bot/promote", version=version)
    assert post(client, "bot/rollback", expected=3)[1]["aliases"] == {"prod": 2}
    status, body = post(client, "bot/rollback", expected=3)
    assert (status, body["error"]["code"]) == (409, "alias_moved")


def test_a_share_from_how_the_model_was_seen(client: TestClient) -> None:
    post(client, "bot/promote", version=1)
    seen = post(client, "bot/promote", version=2, alias="candidate")[1]["generation"]
    status, model = post(client, "bot/canary", percent=5, generation=seen)
    assert (status, model["canary"]["percent"], model["generation"]) == (200, 5, seen + 1)
    status, body = post(client, "bot/canary", percent=50, generation=seen)
    assert (status, body["error"]["code"]) == (409, "alias_moved")
    assert "somebody moved its aliases or its canary first" in body["error"]["message"]
    assert client.get("/v1/registry/models/bot").json()["canary"]["percent"] == 5


def test_evaluations_the_newest_first(client: TestClient, registry: Registry) -> None:
    for against in (None, "bot/1"):
        registry.evaluations("bot").add(2, made_evaluation("bot/2", against=against), {})
    path = "/v1/registry/models/bot/versions/2/evaluations"
    found = client.get(path).json()
    assert [(one["id"], one["number"]) for one in found["data"]] == [("bot/2/2", 2), ("bot/2/1", 1)]
    newest = RegisteredEvaluation.model_validate(found["data"][0])
    assert newest.votes is not None
    assert newest.votes.metrics["auc"].model_dump() == {"value": 0.7, "low": 0.6, "high": 0.8}
    assert newest.kl_on_policy.model_dump() == {"value": 5.0, "low": 3.0, "high": 7.0}
    (other,) = newest.opponents
    assert (other.model, other.role, other.difference["auc"].low) == ("bot/1", "live", -0.02)
    assert other.win_rate is not None
    assert (other.win_rate.wins, other.win_rate.rate.value) == (8, 0.6)
    assert newest.regression is not None
    assert (newest.regression.prompts, newest.regression.failed) == (2, ["hours"])
    assert "We are open." not in str(found), "numbers only"
    one = client.get(path, params={"limit": 1}).json()
    assert (one["has_more"], one["last_id"]) == (True, "bot/2/2")
    rest = client.get(path, params={"after": "bot/2/2"}).json()
    assert ([each["number"] for each in rest["data"]], rest["has_more"]) == ([1], False)
    assert client.get(path.replace("/2/", "/1/")).json()["data"] == []
    assert client.get(path.replace("/2/", "/9/")).status_code == 404
    wrong = client.get(path, params={"after": "bot/2/7"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")


def test_an_evaluation_of_other_weights_says_so(client: TestClient, registry: Registry) -> None:
    other = made_evaluation("bot/2").model_copy(update={"files": "another"})
    files.write_bytes(registry.root / "bot" / "2" / "weights", b"1")
    lineage = registry.get("bot", 2).lineage | {"files": {"weights": "digest"}}
    files.write_json(registry.root / "bot" / "2" / "lineage.json", lineage)
    registry.evaluations("bot").add(2, other, {})
    (found,) = client.get("/v1/registry/models/bot/versions/2/evaluations").json()["data"]
    assert found["notes"] == ["a note", evaluation_routes.OF_OTHERS]


def test_a_damaged_evaluation_is_named(client: TestClient, registry: Registry) -> None:
    place = registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    (place / "evaluation.json").write_text("{}")
    reply = client.get("/v1/registry/models/bot/versions/2/evaluations")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "evaluate the version again" in reply.json()["error"]["message"]


def test_a_registry_in_use_is_503(client: TestClient, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_MOVE_SECONDS", 0.05)
    with files.locked(registry.root / "bot" / ".lock"):
        status, body = post(client, "bot/promote", version=1)
    assert (status, body["error"]["code"]) == (503, "storage_unavailable")
    assert "busy" in body["error"]["message"]


def test_expected_null_is_unset_and_left_out_is_anything(client: TestClient) -> None:
    assert post(client, "bot/promote", version=1, expected=None)[0] == 200
    status, body = post(client, "bot/promote", version=2, expected=None)
    assert (status, body["error"]["code"]) == (409, "alias_moved")
    assert "bot@prod is 1, not None" in body["error"]["message"]
    assert post(client, "bot/promote", version=2, expected=1)[0] == 200
    assert post(client, "bot/promote", version=3)[1]["aliases"] == {"prod": 3}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("other/promote", {"version": 1}, 404, "other/1: no such model version"),
        ("bot/promote", {"version": 9}, 404, "Versions: 1, 2, 3"),
        ("other/rollback", {}, 404, "no such model"),
        ("bot/rollback", {}, 400, "no earlier version"),
        ("bot/canary", {"percent": 5}, 400, "no version is its candidate"),
        ("bot/canary", {"percent": 101}, 422, "percent"),
        ("bot/promote", {"version": 1, "alias": "a b"}, 422, "alias"),
        ("bot/promote", {"versions": 1}, 422, "version"),
        ("%2e%2e/canary", {"percent": 0}, 422, "name"),
        (f"{'a' * 300}/promote", {"version": 1}, 422, "name"),
        ("bot/promote", {"version": 10**300}, 422, "version"),
        ("bot/rollback", {"expected": 1 << 31}, 422, "expected"),
    ],
)
def test_errors(client: TestClient, path: str, body: dict[str, Any], status: int, message: str) -> None:
    found, reply = post(client, path, **body)
    assert found == status
    assert message in reply["error"]["message"]


def test_an_unknown_model(client: TestClient) -> None:
    assert client.get("/v1/registry/models/other").status_code == 404
