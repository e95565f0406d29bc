"""While there are no API keys only this machine is answered, whatever name a foreign page goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from bco_ray.control.keys import KeyStore, Limits
from bco_ray.serving.http.api import create_api
from bco_ray.serving.http.settings import Settings
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.web.hosts import check_local, is_loopback

FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "10.0.0.7:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "0.0.0.0",
]


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore.open(tmp_path)


@pytest.fixture
def client(tmp_path: Path, keys: KeyStore, no_models: Any) -> Any:
    settings, log = Settings(cors_origins=("https://app.example",)), FeedbackLog.open(tmp_path)
    with TestClient(create_api(no_models, log, settings, keys=keys), "http://127.0.0.1:8000") as found:
        yield found
    log.close()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "bot.localhost:80",
        "127.0.0.1",
        "127.8.9.1:1",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, "", "localhost:x", "[::2]", "::1", "[localhost]", "127.0.0.1,evil.com"])
def test_other_names_are_refused(client: TestClient, host: str) -> None:
    for method, path in (("GET", "/v1/models"), ("GET", "/"), ("POST", "/v1/feedback"), ("GET", "/metrics")):
        reply = client.request(method, path, headers={"host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")
        assert "bco keys create" in reply.json()["error"]["message"]


def test_no_host_is_no_browser_and_of_two_both_count(client: TestClient) -> None:
    check_local({"type": "http", "client": None, "headers": []})
    twice = client.get("/v1/models", headers=[("host", "localhost"), ("host", "evil.example")])
    assert twice.status_code == 403


@pytest.mark.parametrize("address", ["203.0.113.9", "10.0.0.7", "fe80::1%eth0", "::ffff:10.0.0.7"])
def test_other_machines_are_refused_whatever_they_ask_for(client: TestClient, address: str) -> None:
    with TestClient(client.app, "http://127.0.0.1:8000", client=(address, 50000)) as other:
        reply = other.get("/v1/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")
        assert address in reply.json()["error"]["message"]
        assert other.get("/healthz").status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", ""])
def test_this_machine_by_any_address(client: TestClient, address: str) -> None:
    with TestClient(client.app, "http://127.0.0.1:8000", client=(address, 50000)) as same:
        assert same.get("/v1/models").status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_probes_come_by_any_name(client: TestClient, host: str) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"host": host}).status_code == 200


def test_with_keys_every_name_will_do(client: TestClient, keys: KeyStore) -> None:
    key = keys.create("acme", "n", "admin", limits=Limits(), actor="test")[1]
    headers = {"host": "bot.example", "authorization": f"Bearer {key}"}
    assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "code"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", None),
        ("http://localhost:8000", "localhost:8000", None),
        ("https://app.example", "127.0.0.1:8000", None),  # named in cors_origins
        ("null", "127.0.0.1:8000", "origin_not_allowed"),
        ("https://evil.example", "127.0.0.1:8000", "origin_not_allowed"),
        ("http://localhost:3000", "localhost:8000", "origin_not_allowed"),
        ("http://evil.example:8000", "evil.example:8000", "host_not_allowed"),  # rebound: to its browser one origin
    ],
)
def test_a_page_that_would_change_something(client: TestClient, origin: str, host: str, code: str | None) -> None:
    reply = client.post("/v1/registry/models/m/promote", json={"version": 1}, headers={"origin": origin, "host": host})
    assert reply.status_code == (403 if code else 404), reply.text
    assert code is None or reply.json()["error"]["code"] == code


@given(st.text())
def test_whatever_the_host_there_is_an_answer(host: str) -> None:
    assert is_loopback(host) in (True, False)
