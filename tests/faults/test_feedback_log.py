"""Two replicas on one log, real HTTP, clients that try again; replicas and exporters are killed all the time.

Every acknowledged vote is in the log once, as it was sent; every other at most once; every export has every vote up to
its watermark once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from bco_ray.storage.export import export, load_manifest, verify_segments
from bco_ray.storage.feedback_log import FeedbackLog, Vote

HERE = Path(__file__).parent
IMPORTS = ("uvicorn", "bco_ray.serving.http.api", "bco_ray.storage.export")
CLIENTS = 4
REPLICAS = 2
AGAIN = 503
"""The log could not be used in time; anything else is the server's mistake."""


@dataclass
class Replicas:
    """Servers on one storage. A client always finds a port, perhaps that of a dead one."""

    start: Callable[..., Any]
    storage: Path
    children: list[Any] = field(default_factory=list)

    def replace(self, index: int, *dies_after: str) -> None:
        """Kill what runs as number `index` and start another."""
        if index < len(self.children):
            self.children[index].kill()
            self.children[index] = self._up(*dies_after)
        else:
            self.children.append(self._up(*dies_after))

    def url(self, rng: Random) -> str:
        return f"http://127.0.0.1:{rng.choice(self.children).output.split()[0]}"

    def _up(self, *dies_after: str) -> Any:
        child = self.start(HERE / "replica.py", self.storage, *dies_after)
        for _ in range(6000):
            if child.output.endswith("\n"):
                return child
            threading.Event().wait(0.01)
        pytest.fail(f"a replica does not start: {child.output}")


@dataclass
class Client(threading.Thread):
    """Asks and votes until told to stop; `sent` and `heard` are votes by key, `answers` whose completion it has heard.

    A patient client sends a vote until it is acknowledged; an impatient one leaves some after the first failure.
    """

    number: int
    seed: str
    replicas: Replicas
    stop: threading.Event
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    failures: int = 0
    error: BaseException | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.rng = Random(self.seed)

    def __hash__(self) -> int:
        return self.number

    def run(self) -> None:
        with httpx.Client(timeout=60) as self.http:
            try:
                while not self.stop.is_set():
                    self.ask()
                    for _ in range(self.rng.randint(1, 4)):
                        self.send([self.new_vote() for _ in range(self.rng.choice([1, 1, 1, 3]))])
            except BaseException as error:
                self.error = error
                raise

    def new_vote(self) -> dict[str, Any]:
        key = f"{self.number}-{len(self.sent)}"
        self.sent[key] = {
            "response_id": self.rng.choice(self.answers[-20:]),
            "label": self.rng.choice([True, False, None]),
            "user": f"user-{self.rng.randrange(5)}",
            "comment": "☹" * self.rng.choice([0, 10, 4000]),
        }
        return {**self.sent[key], "idempotency_key": key}

    def ask(self) -> None:
        """An answer that was heard of to its end can be voted on."""
        streamed = self.rng.random() < 0.3
        body = {"model": "helper", "messages": [{"role": "user", "content": "Hello"}], "stream": streamed}
        response = self.until_heard("/v1/chat/completions", {"json": body}, patient=True)
        assert response is not None
        if streamed:
            lines = [line for line in response.text.split("\n\n") if line]
            assert lines[-1] == "data: [DONE]"
            self.answers.append(json.loads(lines[0].removeprefix("data: "))["id"])
        else:
            self.answers.append(response.json()["id"])

    def send(self, votes: list[dict[str, Any]]) -> None:
        """One by itself, several as a batch."""
        patient, keys = self.rng.random() < 0.8, [vote["idempotency_key"] for vote in votes]
        if len(votes) == 1:
            headers = {"Idempotency-Key": keys[0]}
            response = self.until_heard("/v1/feedback", {"json": self.sent[keys[0]], "headers": headers}, patient)
            results = [response.json()] if response else []
        else:
            content = "\n".join(json.dumps(vote) for vote in votes)
            response = self.until_heard("/v1/feedback/batch", {"content": content}, patient)
            results = response.json()["data"] if response else []
            assert all(result["status"] in (200, 201) for result in results), results
        self.heard.update({key: result["id"] for key, result in zip(keys, results, strict=False)})

    def until_heard(self, path: str, request: dict[str, Any], patient: bool) -> httpx.Response | None:
        """The acknowledgement, from whichever replica; None if an impatient client gave up."""
        for _ in range(600):
            try:
                response = self.http.post(self.replicas.url(self.rng) + path, **request)
                if response.status_code != AGAIN:
                    assert response.status_code in (200, 201), response.text
                    return response
            except httpx.TransportError:
                pass
            self.failures += 1
            if not patient:
                return None
            threading.Event().wait(0.05)
        raise AssertionError(f"{path}: no answer for a long time")


def test_votes_while_replicas_and_exporters_are_killed(faults: Any) -> None:
    storage, nursery, stop = faults.root / "storage", faults.nursery(*IMPORTS), threading.Event()
    replicas = Replicas(nursery.start, storage)
    for index in range(REPLICAS):
        replicas.replace(index)
    clients = [Client(i, f"{faults.rng.random()} {i}", replicas, stop) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    kills = 0
    try:
        for point in range(2 * faults.points):
            kills += replace_one(faults, replicas)
            kills += export_once(faults, nursery, storage)
            assert all(client.error is None for client in clients), f"point {point}"
    finally:
        stop.set()
        for client in clients:
            client.join(120)
        faults.end_all()
    assert not any(client.is_alive() or client.error for client in clients)
    heard, stored = check_log(storage, clients)
    check_exports(storage)
    check_answers(storage, clients)
    faults.report(
        "feedback log", kills=kills, requests_failed=sum(c.failures for c in clients),
        votes_acknowledged=heard, votes_stored=stored, lost=0, doubled=0,
    )  # fmt: skip


def replace_one(faults: Any, replicas: Replicas) -> int:
    """Some time later, a dead replica or a random one is replaced, perhaps by one that dies before it acknowledges."""
    threading.Event().wait(faults.rng.uniform(0.05, 0.4))
    index = next((i for i, child in enumerate(replicas.children) if child.ended() is not None), None)
    mortal = [str(faults.rng.randint(1, 40))] if faults.rng.random() < 0.5 else []
    replicas.replace(faults.rng.randrange(REPLICAS) if index is None else index, *mortal)
    return 1


def export_once(faults: Any, nursery: Any, storage: Path) -> int:
    """Two exporters at once; perhaps one of them is killed at a random file operation."""
    faults.arm(faults.before(faults.rng.randint(1, 40), path="^storage/feedback/"))
    both = [nursery.start(HERE / "exporter.py", storage, "100") for _ in range(2)]
    statuses = [child.wait() for child in both]
    faults.arm(None)
    assert sorted(statuses) in ([0, 0], [-9, 0]), [child.output for child in both]
    return -sum(statuses) // 9


def check_log(storage: Path, clients: list[Client]) -> tuple[int, int]:
    """How many votes were acknowledged and how many are there."""
    with sqlite3.connect(storage / "bco.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT idempotency_key, id, response_id, label, user, comment FROM votes").fetchall()
    sent = {key: vote for client in clients for key, vote in client.sent.items()}
    heard = {key: id for client in clients for key, id in client.heard.items()}
    stored = {key: id for key, id, *_ in rows}
    assert len(stored) == len(rows), "no vote is there twice"
    assert {key: stored.get(key) for key in heard} == heard, "every acknowledged vote is there"
    for key, _, answer, label, user, comment in rows:
        wanted = sent[key]
        assert (answer, label, user, comment) == (
            wanted["response_id"], wanted["label"], wanted["user"], wanted["comment"]
        )  # fmt: skip
    return len(heard), len(stored)


def check_exports(storage: Path) -> None:
    """The newest export and all before it; one more brings the rest."""
    log, directory = FeedbackLog.open(storage), storage / "feedback"
    final = export(log, directory)
    log.close()
    assert final is not None
    verify_segments(directory, final)
    ids = [id for s in final.segments for id in pq.read_table(directory / s.file)["id"].to_pylist()]
    with sqlite3.connect(storage / "bco.db") as connection:
        votes = connection.execute("SELECT id, seq FROM votes ORDER BY seq").fetchall()
    assert (ids, final.watermark) == ([id for id, _ in votes], votes[-1][1])
    for number in range(1, final.number):
        manifest = load_manifest(directory, number)
        assert manifest.segments == final.segments[: len(manifest.segments)]
        assert manifest.rows == sum(seq <= manifest.watermark for _, seq in votes)


def check_answers(storage: Path, clients: list[Client]) -> None:
    """Every answer that was heard of takes a vote."""
    log = FeedbackLog.open(storage)
    answers = [answer for client in clients for answer in client.answers]
    results = log.add_votes([(Vote(response_id=answer, label=True, user="late"), None) for answer in answers])
    log.close()
    assert all(isinstance(result, tuple) for result in results)
