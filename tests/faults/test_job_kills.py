"""The whole server on a Ray cluster of its own, real trainings, SIGKILL: to drivers, to the server, to all at once.

Every accepted job ends as it should, from its newest checkpoint, with one model, and its events tell everything once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bco_ray.storage import files
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.registry import Registry
from bco_ray.storage.run_journal import RunJournal
from bco_ray.testing.tiny import write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.soak]

SERVER = Path(__file__).parents[1] / "service" / "whole_server.py"
SECONDS = 400
"""For whatever is waited for: two cores start a dozen processes per job."""
SPEC = {
    "training": {"num_workers": 1, "max_length": 64, "max_tokens_per_micro_batch": 256, "deepspeed": {"zero_stage": 0},
                 "checkpoint": {"every_steps": 5}},
    "scoring": {"num_workers": 1},
}  # fmt: skip
"""The size of micro-batches is said: found by a dry run's speed it would differ between jobs, and rounding with it."""
VOTES = [{"prompt": f"question {n % 50}?", "completion": ("yes of course", "no never")[n % 2], "label": n % 2 == 0}
         for n in range(200)]  # fmt: skip
EPOCHS = 100
"""300 steps: some ten seconds in which to kill."""


@dataclass
class Server:
    """One storage, and a server with a cluster of its own as often as it is started."""

    faults: Any
    storage: Path
    temporaries: list[str] = field(default_factory=list)
    child: Any = None
    url: str = ""

    def start(self, **more: Any) -> None:
        self.temporaries.append(tempfile.mkdtemp(prefix="bco-", dir="/tmp"))  # a socket's path must stay short
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.child = self.faults.start(SERVER, self.storage, str(port), self.temporaries[-1], json.dumps(more))
        self.until(lambda: self.child.ended() is not None or self._ready(), 0.5)
        assert self.child.ended() is None, self.child.output[-4000:]

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = httpx.request(method, f"{self.url}{path}", timeout=60, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def submit(self, name: str) -> str:
        body = {
            "model": "bot/1", "training_file": str(self.storage / "votes.jsonl"), "suffix": name, "spec": SPEC,
            "seed": 7, "method": {"type": "bco", "bco": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": 20}}},
        }  # fmt: skip
        return str(self.ask("POST", "/fine_tuning/jobs", json=body)["id"])

    def job(self, job_id: str) -> Any:
        return self.ask("GET", f"/fine_tuning/jobs/{job_id}")

    def steer(self, job_id: str, verb: str) -> str:
        return str(self.ask("POST", f"/fine_tuning/jobs/{job_id}/{verb}")["status"])

    def events(self, job_id: str) -> list[Any]:
        """All, in order."""
        found: list[Any] = []
        while True:
            after = {"after": found[-1]["id"]} if found else {}
            page = self.ask("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100, **after})
            found += page["data"]
            if not page["has_more"]:
                return found[::-1]

    def run_of(self, job_id: str) -> Path | None:
        resolved = JobDirectory(self.storage, job_id).resolved
        return Path(resolved["run"]) if resolved else None

    def trains(self, job_id: str) -> bool:
        """It has a checkpoint, and is not done."""
        run = self.run_of(job_id)
        assert run is None or not (run / "model").exists(), "it was done before it could be killed"
        return run is not None and any(run.glob("checkpoints/*/manifest.json"))

    def starts(self, job_id: str) -> list[int]:
        """At which step each training began."""
        run = self.run_of(job_id)
        return [event["step"] for event in RunJournal(run).read() if event["event"] == "training"] if run else []

    def driver(self, job_id: str) -> int:
        """The newest one's process id."""
        log = JobDirectory(self.storage, job_id).log.read_text()
        return int(re.findall(r"attempt \d+, process (\d+)", log)[-1])

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of Serve's actors, whatever they are doing; there is at least one."""
        title = f"ServeReplica:bco:{deployment}".encode()
        found = [pid for pid in self.faults.running() if title in cmdline(pid)]
        assert found, f"no {deployment} runs"
        return found

    def until(self, true: Callable[[], bool], every_seconds: float = 0.05) -> None:
        deadline = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < deadline, f"not in {SECONDS} s: {self.child.output[-4000:]}"
            time.sleep(every_seconds)

    def until_over(self, *job_ids: str) -> None:
        self.until(lambda: all(self._over(job_id) for job_id in job_ids), 1)

    def _over(self, job_id: str) -> bool:
        """Gateways may be away for a while."""
        try:
            return self.job(job_id)["status"] in {"succeeded", "failed", "cancelled"}
        except (httpx.HTTPError, AssertionError):
            return False

    def _ready(self) -> bool:
        try:
            return httpx.get(self.url.removesuffix("/v1") + "/readyz", timeout=10).is_success
        except httpx.HTTPError:
            return False


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def server(faults: Any, tmp_path: Path) -> Iterator[Server]:
    made = Server(faults, faults.root / "storage")
    registry = Registry(made.storage)
    registry.register("bot", write_tiny_model(tmp_path / "base", seed=1), {})
    registry.promote("bot", 1)
    (made.storage / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in VOTES))
    yield made
    faults.end_all()
    for temporary in made.temporaries:
        shutil.rmtree(temporary, ignore_errors=True)


def check_succeeded(server: Server, job_id: str, name: str, attempts: int) -> None:
    """Once, with one model, every step told once, and nothing lost of the way there."""
    job = server.job(job_id)
    assert (job["status"], job["fine_tuned_model"], job["attempt"]) == ("succeeded", f"{name}/1", attempts), job
    assert Registry(server.storage).versions(name) == [1]
    messages = [event["message"] for event in server.events(job_id)]
    once = ["Created fine-tuning job.", f"New fine-tuned model created: {name}/1."]
    once += ["The job has successfully completed.", *(f"Attempt {n + 1} goes to the cluster." for n in range(attempts))]
    assert [messages.count(message) for message in once] == [1] * len(once), messages
    assert sum("was lost" in message for message in messages) <= attempts - 1
    metrics = [event["data"] for event in server.events(job_id) if event["type"] == "metrics"]
    total, steps = metrics[0]["total_steps"], [row["step"] for row in metrics]
    assert steps == sorted({*range(0, total, max(1, total // 100)), total - 1})


def weights(server: Server, name: str) -> str:
    return files.sha256(Registry(server.storage).get(name, 1).directory / "model.safetensors")


@pytest.mark.timeout(1500)
def test_a_driver_and_the_server_are_killed_while_jobs_train(server: Server) -> None:
    """One job loses its driver; the other only those who look after it, and is what an uninterrupted one is."""
    server.start()
    struck, watched = server.submit("struck"), server.submit("watched")
    victims: dict[str, Callable[[], list[int]]] = {
        struck: lambda: [server.driver(struck)],
        watched: lambda: [server.child.pid, *server.replicas("Jobs")],
    }
    while victims:  # whichever trains first
        server.until(lambda: any(map(server.trains, victims)))
        job_id = next(filter(server.trains, victims))
        for pid in victims.pop(job_id)():
            os.kill(pid, signal.SIGKILL)
        assert server.trains(job_id)
    server.until_over(struck, watched)
    check_succeeded(server, struck, "struck", attempts=2)
    check_succeeded(server, watched, "watched", attempts=1)
    assert server.starts(watched) == [0]
    first, second = server.starts(struck)
    assert first == 0 < second
    assert server.job(struck)["trained_tokens"] == server.job(watched)["trained_tokens"] > 0
    assert weights(server, "struck") == weights(server, "watched")
    server.faults.report("job service", kills=3, jobs=2)


@pytest.mark.timeout(1500)
def test_everything_is_killed_and_another_cluster_goes_on(server: Server) -> None:
    """While one job trains, one is paused and one waits."""
    server.start(max_jobs=2)
    paused = server.submit("paused")
    server.until(lambda: server.run_of(paused) is not None)
    trains = server.submit("trains")
    server.until(lambda: server.trains(paused))
    assert server.steer(paused, "pause") == "paused"
    server.until(lambda: server.trains(trains))
    waits = server.submit("waits")
    assert server.job(waits)["attempt"] == 0
    assert server.trains(trains)
    server.faults.end_all()

    server.start()
    server.until(lambda: server.job(trains)["attempt"] == 2 and server.job(waits)["attempt"] == 1)
    assert (server.job(paused)["status"], server.job(paused)["attempt"]) == ("paused", 1)
    assert server.steer(paused, "resume") == "queued"
    server.until_over(paused, trains, waits)
    for job_id, name, attempts in ((paused, "paused", 2), (trains, "trains", 2), (waits, "waits", 1)):
        check_succeeded(server, job_id, name, attempts)
        begun = server.starts(job_id)
        assert len(begun) == attempts
        assert begun == sorted(set(begun))
    assert weights(server, "paused") == weights(server, "trains") == weights(server, "waits")
    server.faults.report("job service", clusters_killed=1, jobs=3)


@pytest.mark.timeout(900)
def test_what_was_accepted_is_there_when_gateways_die(server: Server) -> None:
    """Each key is sent by two clients at once, again and again until it is answered."""
    server.start(gateways=2, max_jobs=1)
    keys, heard, refused = 100, list[tuple[int, str]](), list[str]()

    def create(number: int) -> None:
        body = {"model": "bot/1", "training_file": "/nowhere.jsonl", "suffix": "none", "metadata": {"n": str(number)}}
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                answer = httpx.post(
                    f"{server.url}/fine_tuning/jobs", json=body, headers={"idempotency-key": f"k{number}"}, timeout=10
                )
            except httpx.HTTPError as error:
                refused.append(repr(error))
                continue
            if answer.is_success:
                heard.append((number, answer.json()["id"]))
                return
            assert answer.status_code >= 500, answer.text
            refused.append(answer.text)

    with ThreadPoolExecutor(8) as clients:
        sent = [clients.submit(create, number // 2) for number in range(2 * keys)]
        for so_many in (keys // 4, keys):
            server.until(lambda least=so_many: len(heard) >= least)  # type: ignore[misc]
            os.kill(server.replicas("Gateway")[0], signal.SIGKILL)
        for one in sent:
            one.result(SECONDS)
    made = dict(heard)
    assert len(heard) == 2 * keys
    assert len(set(heard)) == len(set(made.values())) == keys
    stored = jobs_of(server)
    assert {int(job["metadata"]["n"]): job["id"] for job in stored} == made
    assert len(stored) == keys
    server.faults.report("job service", kills=2, creates_acknowledged=2 * keys, creates_sent_again=len(refused))


def jobs_of(server: Server) -> list[Any]:
    found: list[Any] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = server.ask("GET", "/fine_tuning/jobs", params={"limit": 100, **after})
        found += page["data"]
        if not page["has_more"]:
            return found
