"""Access: who gets in, as whom, for how long after a revocation, and how often a minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.control.keys import KeyStore, Limits
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database
from bco_ray.telemetry import logger
from bco_ray.web import errors
from bco_ray.web.access import ANONYMOUS, LOOPBACK, Access, Caller, RequestRate, require
from bco_ray.web.edge import Edge

Submitter = Annotated[Caller, Depends(require("submit"))]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A server with keys, whose clock stands still; `asked` counts what the store was asked."""

    def __init__(self, storage: Path, clock: Clock) -> None:
        self.clock = clock
        self.store = KeyStore(open_database(storage), b"a pepper of the tests", clock=clock)
        self.asked: list[str] = []
        self.broken = False
        self.api = self._api()
        self.client = TestClient(self.api, "http://127.0.0.1", raise_server_exceptions=False)

    def key(self, role: str = "submit", **more: Any) -> str:
        return self.store.create("bots", "n", role, **{"limits": Limits(), "actor": "x", **more})[1]

    def ask(self, key: str | None = None, path: str = "/who", method: str = "GET") -> Any:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.client.request(method, path, headers=headers)

    def find(self, presented: str) -> Any:
        self.asked.append("find")
        if self.broken:
            raise StorageError("bco.db: database is locked")
        return self.store.find(presented)

    def configured(self) -> bool:
        self.asked.append("configured")
        return self.store.any()

    def _api(self) -> FastAPI:
        api = FastAPI(docs_url=None)
        errors.install(api)
        rate = RequestRate(self.clock)
        api.add_middleware(Access, find=self.find, configured=self.configured, rate=rate, clock=self.clock)
        api.add_middleware(Edge, served=lambda *_: None, send_request_id=True)

        @api.get("/who")
        @api.get("/healthz")
        @api.post("/v1/feedback")
        @api.get("/v1/feedback")
        @api.post("/v1/feedback/batch")
        async def who(request: Request) -> dict[str, str]:
            caller = request.scope["bco_caller"]
            return {"key": caller.key_id, "project": caller.project, "role": caller.role}

        @api.post("/jobs")
        async def submit(caller: Submitter) -> dict[str, str]:
            return {"key": caller.key_id}

        return api


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=clock))
    return clock


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> World:
    return World(tmp_path, clock)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Whether or not our logger passes on what it is told."""
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.DEBUG):
        yield caplog
    logger.removeHandler(caplog.handler)


def refused(answer: Any, status: int, code: str) -> str:
    """Its message; the envelope is checked."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"].startswith("req-")
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    return str(error["message"])


def test_without_keys_everybody_is_the_admin(world: World) -> None:
    assert world.ask().json() == {"key": "loopback", "project": "default", "role": "admin"}
    assert world.ask("EMPTY").json()["key"] == "loopback"
    assert world.ask(path="/jobs", method="POST").json() == {"key": "loopback"}
    assert LOOPBACK.may("admin")
    assert not ANONYMOUS.may("infer")


def test_the_first_key_closes_the_door_within_five_seconds_and_for_good(world: World, clock: Clock) -> None:
    world.ask()
    world.ask()
    assert world.asked == ["configured"]
    text = world.key()
    clock.now += 5
    refused(world.ask(), 401, "invalid_api_key")
    world.store.revoke(text, "x")
    clock.now += 3600
    refused(world.ask(), 401, "invalid_api_key")
    assert world.asked == ["configured"] * 2


def test_a_key_says_who_is_asking(world: World) -> None:
    text = world.key("read")
    assert world.ask(text).json() == {"key": text[7:15], "project": "bots", "role": "read"}
    assert world.client.get("/who", headers={"authorization": f"bearer  {text}"}).json()["role"] == "read"


def test_what_a_role_may_not(world: World) -> None:
    assert world.ask(world.key("submit"), "/jobs", "POST").status_code == 200
    message = refused(world.ask(world.key("read"), "/jobs", "POST"), 403, "insufficient_permissions")
    assert message == "This needs a key whose role may submit; the role of this one is read."


def test_a_route_without_access_around_it_is_closed() -> None:
    api = FastAPI()

    @api.post("/jobs")
    async def submit(caller: Submitter) -> None: ...

    assert TestClient(api, raise_server_exceptions=False).post("/jobs").status_code == 500


def test_missing_and_unknown_keys(world: World) -> None:
    text = world.key()
    assert refused(world.ask(), 401, "invalid_api_key").startswith("An API key is needed")
    unknown = f"sk-bco-zzzzzzzz_{text[16:]}"
    assert refused(world.ask(unknown), 401, "invalid_api_key") == "The API key is unknown, expired or revoked."
    refused(world.ask(text[:-1]), 401, "invalid_api_key")
    refused(world.ask(text, "/nowhere"), 404, "not_found")
    refused(world.ask(path="/nowhere"), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "values",
    [
        [b"Bearer {key}", b"Bearer {key}"],
        [b"Basic {key}"],
        [b"{key}"],
        [b"Bearer"],
        [b""],
        [b"Bearer {key}" + b" " * 512],
        [b"Bearer {key}\xc3\xbc"],
        [b"Bearer \xff\xfe"],
        [b"Bearer {key} {key}"],
    ],
)
def test_malformed_headers_are_401(world: World, values: list[bytes]) -> None:
    key = world.key().encode()
    headers = [(b"authorization", value.replace(b"{key}", key)) for value in values]
    message = refused(world.client.get("/who", headers=headers), 401, "invalid_api_key")
    assert key[16:].decode() not in message


def test_health_is_open_and_asks_nobody(world: World) -> None:
    world.key()
    world.broken = True
    for key in (None, "wrong"):
        assert world.ask(key, "/healthz").json()["role"] == "anonymous"
    assert world.asked == []
    refused(world.ask(path="/healthz", method="POST"), 401, "invalid_api_key")
    refused(world.ask(path="/healthz/"), 401, "invalid_api_key")


def test_a_vote_may_come_without_a_key_but_not_with_a_wrong_one(world: World) -> None:
    text = world.key("infer")
    assert world.ask(path="/v1/feedback", method="POST").json()["role"] == "anonymous"
    assert world.ask(text, "/v1/feedback", "POST").json()["role"] == "infer"
    refused(world.ask(text + "x", "/v1/feedback", "POST"), 401, "invalid_api_key")
    refused(world.ask(path="/v1/feedback"), 401, "invalid_api_key")
    refused(world.ask(path="/v1/feedback/batch", method="POST"), 401, "invalid_api_key")


def test_a_revoked_key_works_for_five_seconds_at_most(world: World, clock: Clock) -> None:
    text = world.key()
    assert world.ask(text).status_code == 200
    world.store.revoke(text, "x")
    clock.now += 4.9
    assert world.ask(text).status_code == 200
    assert world.asked.count("find") == 1
    clock.now += 0.1
    refused(world.ask(text), 401, "invalid_api_key")
    refused(world.ask(text), 401, "invalid_api_key")


def test_an_expired_key_is_401(world: World, clock: Clock) -> None:
    text = world.key(expires_at=clock.now + 60)
    assert world.ask(text).status_code == 200
    clock.now += 60
    refused(world.ask(text), 401, "invalid_api_key")


def test_a_new_key_works_at_once(world: World) -> None:
    world.key()
    world.ask()
    assert world.ask(world.key()).status_code == 200


def test_a_database_that_fails_lets_nobody_in(world: World, clock: Clock, log: pytest.LogCaptureFixture) -> None:
    text = world.key()
    assert world.ask(text).status_code == 200
    world.broken = True
    assert world.ask(text).status_code == 200  # for the seconds that it is remembered
    clock.now += 5
    refused(world.ask(text), 503, "storage_unavailable")
    assert "database is locked" in log.text
    assert text[16:] not in log.text


def test_so_many_requests_a_minute(world: World, clock: Clock) -> None:
    text, other = world.key(limits=Limits(requests_per_minute=2)), world.key(limits=Limits(requests_per_minute=2))

    def told(answer: Any) -> tuple[str, ...]:
        return tuple(answer.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset"))

    assert told(world.ask(text)) == ("2", "1", "60s")
    clock.now += 15
    assert told(world.ask(text)) == ("2", "0", "45s")
    clock.now += 15
    full = world.ask(text)
    assert refused(full, 429, "rate_limit_exceeded") == "This key may send 2 requests a minute; wait 30 s."
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert full.headers["retry-after"] == "30"
    assert told(full) == ("2", "0", "30s")
    assert world.ask(other).status_code == 200
    clock.now += 30.1
    assert told(world.ask(text)) == ("2", "0", "15s")
    refused(world.ask(text), 429, "rate_limit_exceeded")
    clock.now += 3600
    assert told(world.ask(text)) == ("2", "1", "60s")


def test_errors_of_limited_keys_tell_what_is_left_and_unlimited_ones_hear_nothing(world: World) -> None:
    limited = world.ask(world.key("read", limits=Limits(requests_per_minute=9)), "/jobs", "POST")
    assert limited.status_code == 403
    assert limited.headers["x-ratelimit-remaining-requests"] == "8"
    assert not [name for name in world.ask(world.key()).headers if name.startswith("x-ratelimit")]


def test_the_secret_is_in_no_reply_and_no_line(world: World, log: pytest.LogCaptureFixture) -> None:
    text = world.key(limits=Limits(requests_per_minute=1))
    answers = [world.ask(text), world.ask(text), world.ask(f"{text}x"), world.ask(f"x{text}"), world.ask(f"{text} a")]
    assert [answer.status_code for answer in answers] == [200, 429, 401, 401, 401]
    for answer in answers:
        assert text[16:] not in answer.text + str(answer.headers)
    logs = "".join(record.getMessage() for record in log.records if record.name.startswith("bco_ray"))
    assert text[16:] not in logs


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    store = KeyStore.open(tmp_path_factory.mktemp("keys"))
    store.create("bots", "n", "read", limits=Limits(), actor="x")
    return store


async def status_of(store: KeyStore, scope: dict[str, Any]) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nobody_gets_here(*_: Any) -> None:
        raise AssertionError

    access = Access(nobody_gets_here, find=store.find, configured=store.any, rate=RequestRate())
    await access(scope, None, send)  # type: ignore[arg-type]
    return int(sent[0]["status"])


HEADER = st.one_of(
    st.binary(max_size=600),
    st.binary(max_size=80).map(b"Bearer ".__add__),
    st.text(st.characters(max_codepoint=127), max_size=80).map(lambda text: b"bEARER sk-bco-" + text.encode()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(HEADER, max_size=3))
def test_whatever_the_headers_it_is_401(closed: KeyStore, values: list[bytes]) -> None:
    scope = {"type": "http", "method": "GET", "path": "/who", "headers": [(b"authorization", v) for v in values]}
    assert asyncio.run(status_of(closed, scope)) == 401


def test_a_websocket_is_no_way_around(closed: KeyStore) -> None:
    scope = {"type": "websocket", "path": "/who", "headers": []}
    assert asyncio.run(status_of(closed, scope)) == 401
