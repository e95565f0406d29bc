"""Webhooks and what is due to them, on both databases; and the routes over them."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from bco_ray.control.http.webhook_routes import router
from bco_ray.control.webhooks import Outcome, Taken, UnknownCursorError, WebhookStore
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database, reading, writing
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_tables import webhook_deliveries, webhooks
from bco_ray.web import errors

SUCCEEDED, FAILED, CANCELLED = (f"fine_tuning.job.{status}" for status in ("succeeded", "failed", "cancelled"))
URL = "https://93.184.216.34/hook"


class Clock:
    """Seconds that pass when told to."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[WebhookStore]:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    engine = open_database(tmp_path, url)
    yield WebhookStore(engine, clock=clock)
    engine.dispose()


def happens(store: WebhookStore, event: Any = SUCCEEDED, project: str = "red", job: str = "ftjob-1") -> None:
    with writing(store.engine) as connection:
        store.enqueue(connection, project, event, {"id": job})


def take(store: WebhookStore, now: float, **how: Any) -> list[Taken]:
    return list(store.take(now, **{"until": now + 60, "most": 8, "busy": [], "tries": 9, **how}))


def test_a_secret_is_shown_once_and_is_as_standard_webhooks_wants_it(store: WebhookStore) -> None:
    made, secret = store.create("red", URL, [SUCCEEDED, FAILED, SUCCEEDED])
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    assert made.events == [SUCCEEDED, FAILED]
    assert store.get("red", made.id) == made
    assert store.list("red") == ([made], False)
    assert secret not in repr((made, store.list("red")))


def test_no_error_tells_a_secret(
    store: WebhookStore, client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda size: b"s" * size)
    told = base64.b64encode(b"s" * 8).decode()[:8]
    with writing(store.engine) as connection:
        connection.execute(sa.text("drop table webhook_deliveries"))
        connection.execute(sa.text("drop table webhooks"))
    with pytest.raises(StorageError) as raised:
        store.create("red", URL, [SUCCEEDED])
    assert told not in str(raised.value)
    reply = create(client)
    assert reply.status_code == 503
    assert told not in reply.text + caplog.text


def test_no_two_secrets_are_the_same(store: WebhookStore) -> None:
    assert store.create("red", URL, [FAILED])[1] != store.create("red", URL, [FAILED])[1]


def test_a_project_sees_its_own_only(store: WebhookStore) -> None:
    made, _ = store.create("red", URL, [SUCCEEDED])
    happens(store)
    (sent,), _ = store.deliveries("red", made.id)
    for look in (store.get, store.delete, store.deliveries):
        with pytest.raises(NotFoundError, match=f"{made.id}: no such webhook"):
            look("blue", made.id)
    assert store.list("blue") == ([], False)
    with pytest.raises(UnknownCursorError):
        store.list("blue", made.id)
    other, _ = store.create("red", URL, [SUCCEEDED])
    with pytest.raises(UnknownCursorError):
        store.deliveries("red", other.id, sent.id)


def test_lists_are_paged_newest_first(store: WebhookStore, clock: Clock) -> None:
    made = list[str]()
    for _ in range(5):
        made.insert(0, store.create("red", URL, [SUCCEEDED])[0].id)
        clock.now += 0.5
    first, more = store.list("red", limit=2)
    store.delete("red", made[1])
    rest, none = store.list("red", made[1], 5)
    assert [one.id for one in (*first, *rest)] == made
    assert (more, none) == (True, False)
    with pytest.raises(UnknownCursorError, match="after: wh_x: not in this list"):
        store.list("red", "wh_x")


def test_webhooks_of_the_same_moment_are_paged_too(store: WebhookStore) -> None:
    made = {store.create("red", URL, [SUCCEEDED])[0].id for _ in range(7)}
    seen, more = store.list("red", limit=3)
    found = list(seen)
    while more:
        seen, more = store.list("red", found[-1].id, 3)
        found += seen
    assert (len(found), {one.id for one in found}) == (7, made)


def test_deliveries_are_paged_newest_first(store: WebhookStore) -> None:
    made, _ = store.create("red", URL, [SUCCEEDED])
    for _ in range(5):
        happens(store)
    first, more = store.deliveries("red", made.id, limit=2)
    rest, none = store.deliveries("red", made.id, first[-1].id)
    assert (len({*first, *rest}), more, none) == (5, True, False)
    assert take(store, 2e6)[0].id == rest[-1].id  # sent oldest first


@pytest.mark.parametrize("odd", ["", "wh_\0", "\ud800", "x" * 100_000])
def test_odd_names_are_unknown_ones(store: WebhookStore, odd: str) -> None:
    made, _ = store.create("red", URL, [SUCCEEDED])
    for look in (store.get, store.delete, store.deliveries):
        with pytest.raises(NotFoundError):
            look("red", odd)
    for page in (lambda: store.list("red", odd), lambda: store.deliveries("red", made.id, odd)):
        with pytest.raises(UnknownCursorError):
            page()


def test_an_event_goes_to_every_live_webhook_that_asked_for_it(store: WebhookStore, clock: Clock) -> None:
    one, _ = store.create("red", URL, [SUCCEEDED, FAILED])
    two, secret = store.create("red", f"{URL}2", [SUCCEEDED])
    for other in ([CANCELLED], [SUCCEEDED]):
        gone, _ = store.create("red", URL, other)
        if other == [SUCCEEDED]:
            store.delete("red", gone.id)
    store.create("blue", URL, [SUCCEEDED])
    happens(store)
    taken = {delivery.webhook_id: delivery for delivery in take(store, clock.now)}
    assert set(taken) == {one.id, two.id}
    assert taken[one.id].payload == taken[two.id].payload
    assert taken[one.id].id != taken[two.id].id
    event = json.loads(taken[two.id].payload)
    assert event.pop("id").startswith("evt_")
    assert event == {"object": "event", "type": SUCCEEDED, "created_at": 1_000_000, "data": {"id": "ftjob-1"}}
    assert (taken[two.id].url, taken[two.id].secret) == (f"{URL}2", secret)
    assert secret not in repr(taken)


def test_what_did_not_happen_is_not_told(store: WebhookStore) -> None:
    store.create("red", URL, [SUCCEEDED])

    def cut_short() -> None:
        with writing(store.engine) as connection:
            store.enqueue(connection, "red", "fine_tuning.job.succeeded", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_short()
    assert take(store, 2e6) == []


def test_what_waits_for_a_deleted_webhook_is_dropped_and_its_secret_forgotten(store: WebhookStore) -> None:
    made, secret = store.create("red", URL, [SUCCEEDED])
    happens(store)
    store.delete("red", made.id)
    with pytest.raises(NotFoundError):
        store.delete("red", made.id)
    assert take(store, 2e6) == []
    with reading(store.engine) as connection:
        assert connection.execute(sa.select(webhook_deliveries.c.next_at)).scalar_one() is None
        assert secret not in repr(connection.execute(sa.select(webhooks)).all())


def test_one_of_each_webhook_the_oldest_and_none_that_is_busy(store: WebhookStore, clock: Clock) -> None:
    made = [store.create("red", URL, [SUCCEEDED])[0].id for _ in range(3)]
    for job in ("a", "b"):
        happens(store, job=job)
    taken = take(store, clock.now, busy=[made[0]])
    assert {(one.webhook_id, json.loads(one.payload)["data"]["id"]) for one in taken} == {
        (made[1], "a"),
        (made[2], "a"),
    }
    assert [one.webhook_id for one in take(store, clock.now, most=1)] == [made[0]]
    assert take(store, clock.now - 1) == []


def test_who_has_taken_it_has_it_until_then(store: WebhookStore, clock: Clock) -> None:
    made, _ = store.create("red", URL, [SUCCEEDED])
    happens(store)
    (first,) = take(store, clock.now)
    assert take(store, clock.now + 59) == []
    (second,) = take(store, clock.now + 60)  # the first taker was too slow, or is gone
    assert (first.id, first.attempts, second.id, second.attempts) == (second.id, 1, first.id, 2)
    store.record(first, Outcome(500, "late", None, 1.0))
    (now,), _ = store.deliveries("red", made.id)
    assert (now.last_error, now.next_at) == (None, clock.now + 120)
    store.record(second, Outcome(200, None, clock.now + 61, None))
    (now,), _ = store.deliveries("red", made.id)
    assert (now.last_status, now.delivered_at, now.next_at) == (200, clock.now + 61, None)


def test_what_takes_its_sender_down_does_so_a_few_times_only(store: WebhookStore) -> None:
    store.create("red", URL, [SUCCEEDED])
    happens(store)
    assert [len(take(store, 2e6 + 100 * time, tries=3)) for time in range(5)] == [1, 1, 1, 0, 0]


# --- routes


@dataclass(frozen=True)
class Someone:
    project: str
    key_id: str = "key1"


def caller(request: Request) -> Someone:
    return Someone(request.headers.get("x-project", "red"))


@pytest.fixture
def client(store: WebhookStore) -> Iterator[TestClient]:
    api = FastAPI()
    errors.install(api)
    api.include_router(router(store, allow_private=False, caller=caller))
    with TestClient(api, raise_server_exceptions=False) as found:
        yield found


def create(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/webhooks", json={"url": URL, "events": [SUCCEEDED], **body})


def refusal(reply: Any) -> tuple[int, str, str | None]:
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


def test_made_looked_at_deleted(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reply = create(client)
    made = reply.json()
    secret = made.pop("secret")
    assert (reply.status_code, reply.headers["cache-control"]) == (201, "no-store")
    assert made == {
        "id": made["id"], "object": "webhook", "created_at": 1_000_000, "url": URL, "events": [SUCCEEDED],
    }  # fmt: skip
    assert client.get(f"/v1/webhooks/{made['id']}").json() == made
    assert client.get("/v1/webhooks").json() == {
        "object": "list", "data": [made], "has_more": False, "first_id": made["id"], "last_id": made["id"],
    }  # fmt: skip
    assert client.delete(f"/v1/webhooks/{made['id']}").json() == {
        "id": made["id"],
        "object": "webhook",
        "deleted": True,
    }
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries")):
        assert refusal(client.request(method, f"/v1/webhooks/{made['id']}{path}")) == (404, "not_found", None)
    assert secret not in caplog.text


def test_what_became_of_a_delivery(client: TestClient, store: WebhookStore, clock: Clock) -> None:
    made = create(client).json()["id"]
    for _ in range(3):
        happens(store)
    for outcome in (Outcome(200, None, clock.now + 1, None), Outcome(410, "gone", None, None)):
        store.record(*take(store, clock.now), outcome)
    data = client.get(f"/v1/webhooks/{made}/deliveries").json()["data"]
    assert [(one["status"], one["attempts"]) for one in data] == [("pending", 0), ("failed", 1), ("delivered", 1)]
    assert data[2] == {
        "id": data[2]["id"], "object": "webhook.delivery", "webhook_id": made, "created_at": 1_000_000,
        "event": SUCCEEDED, "status": "delivered", "attempts": 1, "next_attempt_at": None, "delivered_at": 1_000_001,
        "last_status": 200, "last_error": None,
    }  # fmt: skip


def test_pages(client: TestClient, store: WebhookStore) -> None:
    made = create(client).json()["id"]
    create(client)
    for _ in range(3):
        happens(store)
    for path in ("", f"/{made}/deliveries"):
        first = client.get(f"/v1/webhooks{path}", params={"limit": 1}).json()
        rest = client.get(f"/v1/webhooks{path}", params={"after": first["last_id"]}).json()
        assert (first["has_more"], rest["has_more"], len(rest["data"])) == (True, False, 2 if path else 1)
        assert refusal(client.get(f"/v1/webhooks{path}?after=other")) == (400, "invalid_field", "after")
        assert refusal(client.get(f"/v1/webhooks{path}?after=%00")) == (400, "invalid_field", "after")
        assert refusal(client.get(f"/v1/webhooks{path}?limit=0")) == (422, "invalid_field", "query.limit")


def test_another_projects_are_not_there(client: TestClient) -> None:
    made, blue = create(client).json()["id"], {"x-project": "blue"}
    assert client.get("/v1/webhooks", headers=blue).json()["data"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries")):
        assert client.request(method, f"/v1/webhooks/{made}{path}", headers=blue).status_code == 404
    assert client.get(f"/v1/webhooks/{made}").status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"url": "https://127.0.0.1/"}, (400, "invalid_url", "url")),
        ({"url": "https://169.254.169.254/latest/meta-data"}, (400, "invalid_url", "url")),
        ({"url": "http://93.184.216.34/"}, (400, "invalid_url", "url")),
        ({"url": "https://me:hunter2@93.184.216.34/"}, (400, "invalid_url", "url")),
        ({"url": 1}, (422, "invalid_field", "url")),
        ({"url": "https://93.184.216.34/" + "a" * 2048}, (422, "invalid_field", "url")),
        ({"events": []}, (422, "invalid_field", "events")),
        ({"events": ["fine_tuning.job.started"]}, (422, "invalid_field", "events.0")),
        ({"events": [SUCCEEDED] * 17}, (422, "invalid_field", "events")),
        ({"secret": "whsec_mine"}, (422, "invalid_field", "secret")),
    ],
)
def test_what_is_refused(client: TestClient, body: dict[str, Any], expected: tuple[int, str, str]) -> None:
    reply = create(client, **body)
    assert refusal(reply) == expected
    assert "hunter2" not in reply.text
    assert client.get("/v1/webhooks").json()["data"] == []
