"""Deliveries to a real server: signed, tried again, sent once by however many deliverers, held up by nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from bco_ray.control import delivering
from bco_ray.control.delivering import RETRY_SECONDS, Deliverer
from bco_ray.control.outgoing import Sender, UnreachableError
from bco_ray.control.webhooks import Delivery, WebhookStore
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database, writing
from bco_ray.telemetry import logger

SUCCEEDED: Any = "fine_tuning.job.succeeded"
NOW = 0.0


class Endpoint:
    """A server that keeps what it was told; `statuses` by path, the last one again and again."""

    def __init__(self) -> None:
        self.told = list[tuple[str, dict[str, str], str]]()
        self.statuses: dict[str, list[int]] = {}
        self.port = 0

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def status(self, path: str) -> int:
        planned = self.statuses.get(path, [200])
        return planned.pop(0) if len(planned) > 1 else planned[0]

    @contextmanager
    def up(self) -> Iterator[Endpoint]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            endpoint.told.append((self.path, dict(self.headers), body))
            self.send_response(endpoint.status(self.path))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    return Handler


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each test: a receiver refuses what is five minutes old, and a module may wait that long for its turn."""
    monkeypatch.setitem(globals(), "NOW", float(int(time.time())))


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], WebhookStore]]:
    """Each call opens the database anew, as another server would."""
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    opened = list[WebhookStore]()

    def store() -> WebhookStore:
        opened.append(WebhookStore(open_database(tmp_path, url), clock=lambda: NOW))
        return opened[-1]

    yield store
    for one in opened:
        one.engine.dispose()


@pytest.fixture
def store(stores: Callable[[], WebhookStore]) -> WebhookStore:
    return stores()


@pytest.fixture(autouse=True)
def our_log_reaches_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test before this one has configured."""
    monkeypatch.setattr(logger, "propagate", True)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint().up() as up:
        yield up


def happens(store: WebhookStore, times: int = 1, project: str = "red") -> None:
    with writing(store.engine) as connection:
        for time_ in range(times):
            store.enqueue(connection, project, SUCCEEDED, {"id": f"ftjob-{time_}"})


def deliverer(store: WebhookStore, send: Any = None, chance: float = 0.5) -> Deliverer:
    return Deliverer(store, send or Sender(allow_private=True), clock=lambda: NOW, chance=lambda: chance)


def attempt(store: WebhookStore, at: float, send: Any = None, chance: float = 0.5) -> None:
    asyncio.run(deliverer(store, send, chance).run_once(at))


def only(store: WebhookStore, webhook_id: str) -> Delivery:
    (found,), _ = store.deliveries("red", webhook_id)
    return found


def test_a_receiver_with_the_secret_can_tell_that_it_was_us(store: WebhookStore, endpoint: Endpoint) -> None:
    made, secret = store.create("red", endpoint.url("/hook"), [SUCCEEDED])
    happens(store)
    attempt(store, NOW)
    ((path, headers, body),) = endpoint.told
    assert (path, headers["content-type"]) == ("/hook", "application/json")
    event = Webhook(secret).verify(body, headers)
    assert (event["type"], event["data"]) == (SUCCEEDED, {"id": "ftjob-0"})
    for forged in (body.replace("ftjob-0", "ftjob-1"), body + " "):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(forged, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(store.create("red", endpoint.url(), [SUCCEEDED])[1]).verify(body, headers)
    done = only(store, made.id)
    assert (headers["webhook-id"], done.last_status, done.last_error, done.next_at) == (done.id, 200, None, None)
    assert done.delivered_at == pytest.approx(NOW, abs=5)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_it_is_tried_again_later_and_later_and_then_given_up(
    store: WebhookStore, endpoint: Endpoint, chance: float
) -> None:
    made, secret = store.create("red", endpoint.url(), [SUCCEEDED])
    endpoint.statuses["/"] = [500]
    happens(store)
    at, waited = NOW, list[float]()
    for _ in RETRY_SECONDS:
        attempt(store, at, chance=chance)
        due = only(store, made.id).next_at
        assert due is not None
        waited.append(due - at)
        attempt(store, due - 0.001)  # not before
        at = due
    factor = 0.8 + 0.4 * chance
    assert waited == pytest.approx([factor * seconds for seconds in RETRY_SECONDS], abs=2)
    attempt(store, at)
    attempt(store, at + 1e6)
    given_up = only(store, made.id)
    assert (given_up.attempts, given_up.next_at, given_up.delivered_at) == (9, None, None)
    assert (given_up.last_status, given_up.last_error) == (500, "the endpoint answered 500, not 2xx")
    assert len(endpoint.told) == 9
    assert len({headers["webhook-id"] for _, headers, _ in endpoint.told}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in endpoint.told}) == 9  # each signed for its own time
    assert Webhook(secret).verify(endpoint.told[0][2], endpoint.told[0][1])


@pytest.mark.parametrize("status", [201, 204, 299])
def test_any_2xx_will_do(store: WebhookStore, endpoint: Endpoint, status: int) -> None:
    made, _ = store.create("red", endpoint.url(), [SUCCEEDED])
    endpoint.statuses["/"] = [status]
    happens(store)
    attempt(store, NOW)
    assert only(store, made.id).delivered_at is not None


@pytest.mark.parametrize("status", [302, 400, 404, 429, 503])
def test_and_nothing_else(store: WebhookStore, endpoint: Endpoint, status: int) -> None:
    made, _ = store.create("red", endpoint.url(), [SUCCEEDED])
    endpoint.statuses["/"] = [status, 200]
    happens(store)
    attempt(store, NOW)
    failed = only(store, made.id)
    assert (failed.delivered_at, failed.last_status) == (None, status)
    attempt(store, NOW + 10)
    done = only(store, made.id)
    assert (done.attempts, done.last_status, done.last_error) == (2, 200, None)


def test_410_is_a_last_word(store: WebhookStore, endpoint: Endpoint) -> None:
    made, _ = store.create("red", endpoint.url(), [SUCCEEDED])
    endpoint.statuses["/"] = [410]
    happens(store)
    attempt(store, NOW)
    attempt(store, NOW + 1e6)
    gone = only(store, made.id)
    assert (gone.attempts, gone.next_at, gone.last_status, len(endpoint.told)) == (1, None, 410, 1)


def test_nobody_there_is_said_and_tried_again(store: WebhookStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made, secret = store.create("red", "http://127.0.0.1:1/?token=private", [SUCCEEDED])
    happens(store)
    attempt(store, NOW)
    failed = only(store, made.id)
    assert failed.last_status is None
    assert failed.last_error is not None
    assert failed.last_error.startswith("127.0.0.1: no connection")
    assert failed.next_at == pytest.approx(NOW + 5, abs=2)
    for private in (secret, "token=private"):
        assert private not in failed.last_error


def test_what_may_not_be_called_any_more_is_not(store: WebhookStore, endpoint: Endpoint) -> None:
    made, _ = store.create("red", endpoint.url(), [SUCCEEDED])
    happens(store)
    attempt(store, NOW, Sender(allow_private=False))
    assert "must start with https://" in str(only(store, made.id).last_error)
    assert endpoint.told == []


def test_many_deliverers_send_once(stores: Callable[[], WebhookStore], endpoint: Endpoint) -> None:
    first = stores()
    for path in "abcde":
        first.create("red", endpoint.url(f"/{path}"), [SUCCEEDED])
    happens(first, 4)

    async def all_at_once() -> None:
        await asyncio.gather(*(deliverer(store).run_once(NOW) for store in (first, stores(), stores(), stores())))

    asyncio.run(all_at_once())
    ids = [headers["webhook-id"] for _, headers, _ in endpoint.told]
    assert len(ids) == len(set(ids)) == 20


def test_each_project_is_told_of_its_own(store: WebhookStore, endpoint: Endpoint) -> None:
    for project in ("red", "blue"):
        store.create(project, endpoint.url(f"/{project}"), [SUCCEEDED])
    happens(store, project="blue")
    attempt(store, NOW)
    assert [path for path, _, _ in endpoint.told] == ["/blue"]


def test_a_slow_endpoint_holds_up_only_itself(store: WebhookStore, endpoint: Endpoint) -> None:
    """With more waiting for it than may be on their way at once."""
    slow, _ = store.create("red", "http://slow/", [SUCCEEDED])
    happens(store, 20)
    for path in "abc":
        store.create("red", endpoint.url(f"/{path}"), [SUCCEEDED])
    happens(store, 3)
    sender, waiting = Sender(allow_private=True), list[str]()

    async def send(url: str, body: str, headers: Mapping[str, str]) -> int:
        if url == "http://slow/":
            waiting.append(url)
            await asyncio.sleep(60)
        return await sender(url, body, headers)

    asyncio.run(until(deliverer(store, send), lambda: len(endpoint.told) == 9))
    assert waiting == ["http://slow/"]
    assert sum(one.attempts for one in store.deliveries("red", slow.id)[0]) == 1


async def until(runner: Deliverer, reached: Callable[[], bool]) -> None:
    """`run` it until then, and cancel it."""
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(30):
        while not reached():
            assert not running.done(), running.exception()
            await asyncio.sleep(0.02)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_never_more_than_eight_at_once(store: WebhookStore) -> None:
    for number in range(20):
        store.create("red", f"http://{number}/", [SUCCEEDED])
    happens(store)
    there, most, sent = 0, 0, list[str]()

    async def send(url: str, *_: object) -> int:
        nonlocal there, most
        there, sent[len(sent) :] = there + 1, [url]
        most = max(most, there)
        await asyncio.sleep(0.03)
        there -= 1
        return 200

    attempt(store, NOW, send)
    assert (most, len(sent), len(set(sent))) == (8, 20, 20)


def test_what_was_sent_but_not_recorded_is_sent_again(
    stores: Callable[[], WebhookStore], endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that ends between the answer and its record: at least once, with the id it had."""
    store, broken = stores(), stores()
    made, secret = store.create("red", endpoint.url(), [SUCCEEDED])
    happens(store)

    def full(*_: object) -> None:
        raise StorageError("disk full")

    broken.record = full  # type: ignore[method-assign]
    attempt(broken, NOW)
    assert "disk full" in caplog.text
    attempt(store, NOW + delivering.LEASE_SECONDS - 1)
    assert len(endpoint.told) == 1
    attempt(store, NOW + delivering.LEASE_SECONDS)
    assert len({headers["webhook-id"] for _, headers, _ in endpoint.told}) == 1
    assert (len(endpoint.told), only(store, made.id).last_status) == (2, 200)
    assert secret not in caplog.text


def test_a_mistake_of_ours_with_one_delivery_stops_no_other(
    store: WebhookStore, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = store.create("red", "http://cursed/", [SUCCEEDED])
    store.create("red", endpoint.url(), [SUCCEEDED])
    happens(store, 2)
    sender = Sender(allow_private=True)

    async def send(url: str, body: str, headers: Mapping[str, str]) -> int:
        return 1 // 0 if url == "http://cursed/" else await sender(url, body, headers)

    asyncio.run(until(deliverer(store, send), lambda: len(endpoint.told) == 2))
    assert "ZeroDivisionError" in caplog.text
    assert secret not in caplog.text


def test_a_database_that_is_away_is_waited_for(
    store: WebhookStore, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivering, "POLL_SECONDS", 0.02)
    store.create("red", endpoint.url(), [SUCCEEDED])
    happens(store)
    take, troubles = store.take, iter([StorageError("locked"), StorageError("locked")])

    def away(*args: Any, **kwargs: Any) -> Any:
        if trouble := next(troubles, None):
            raise trouble
        return take(*args, **kwargs)

    store.take = away  # type: ignore[method-assign]
    asyncio.run(until(deliverer(store), lambda: len(endpoint.told) == 1))
    assert caplog.text.count("wait for the database: locked") == 2


def test_what_is_on_its_way_when_a_server_ends_is_sent_by_another(
    stores: Callable[[], WebhookStore], endpoint: Endpoint
) -> None:
    store = stores()
    store.create("red", endpoint.url(), [SUCCEEDED])
    happens(store)
    begun = list[str]()

    async def send(url: str, *_: object) -> int:
        begun.append(url)
        await asyncio.sleep(60)
        raise UnreachableError(url)

    asyncio.run(until(deliverer(store, send), lambda: bool(begun)))
    attempt(stores(), NOW + delivering.LEASE_SECONDS)
    assert json.loads(endpoint.told[0][2])["type"] == SUCCEEDED
