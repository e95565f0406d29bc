"""A job's whole life over HTTP with the stock client: real server, real Ray Jobs, real training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SMALL: Any = {
    "training": {"num_workers": 1, "max_length": 64, "deepspeed": {"zero_stage": 0}, "checkpoint": {"every_steps": 2}},
    "scoring": {"num_workers": 1},
}


def votes(count: int = 200) -> bytes:
    texts = ("yes of course", True), ("no never", False)
    rows = (
        {"prompt": f"question {n % 50}?", "completion": texts[n % 2][0], "label": texts[n % 2][1]} for n in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def until(true: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def client(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    temporary = tempfile.mkdtemp(prefix="bco-jobs-", dir="/tmp")
    registry = Registry(storage)
    registry.register("bot", write_tiny_model(tmp_path_factory.mktemp("made"), seed=1), {})
    registry.promote("bot", 1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("whole_server.py")), str(storage), str(port), temporary]
    log = storage / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or ready(port))
        assert process.poll() is None, log.read_text()[-3000:]
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        finally:
            end_all(temporary)
            shutil.rmtree(temporary, ignore_errors=True)


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).is_success
    except httpx.HTTPError:
        return False


def kill_driver(job_id: str) -> None:
    """SIGKILL, as the machine would when memory is short."""
    found = subprocess.run(["pgrep", "-f", f"pipeline.driver .*{job_id}"], capture_output=True, text=True, check=True)
    for pid in map(int, found.stdout.split()):
        os.kill(pid, signal.SIGKILL)


def end_all(temporary: str) -> None:
    """Every process that names this cluster's directory."""
    found = subprocess.run(["pgrep", "-f", temporary], capture_output=True, text=True, check=False).stdout.split()
    for pid in map(int, found):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def test_from_votes_to_the_served_model(client: openai.OpenAI, storage: Path) -> None:
    file = client.files.create(file=("votes.jsonl", votes()), purpose="fine-tune")
    method: Any = {
        "type": "bco",
        "bco": {"hyperparameters": {"n_epochs": 1, "batch_size": 50, "learning_rate": "auto"}},
    }
    job = client.fine_tuning.jobs.create(
        model="bot@prod", training_file=file.id, method=method, suffix="bot", extra_body={"spec": SMALL}
    )
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in {"succeeded", "failed"})
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.error, done.fine_tuned_model) == ("succeeded", None, "bot/2")
    assert Registry(storage).get("bot", 2).lineage["project"] == "default"
    assert done.trained_tokens
    assert 0 < done.hyperparameters.learning_rate < 1  # type: ignore[attr-defined]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    steps = [event.data["step"] for event in reversed(events) if event.type == "metrics"]  # type: ignore[index]
    assert steps == list(range(len(steps)))
    assert steps
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].step_number == len(steps)
    assert "attempt 1" in client.get(f"/fine_tuning/jobs/{job.id}/logs", cast_to=httpx.Response).text
    client.post("/registry/models/bot/promote", body={"version": 2}, cast_to=object)
    until(lambda: said(client).model == "bot/2")


def said(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(
        model="bot", messages=[{"role": "user", "content": "question 1?"}], max_tokens=4
    )


def test_paused_it_frees_the_cluster_and_resumed_it_goes_on(client: openai.OpenAI) -> None:
    file = client.files.create(file=("votes.jsonl", votes()), purpose="fine-tune")
    method: Any = {"type": "bco", "bco": {"hyperparameters": {"batch_size": 20}}}
    long = {**SMALL, "training": {**SMALL["training"], "num_train_epochs": 3000, "checkpoint": {"every_steps": 20}}}
    job = client.fine_tuning.jobs.create(
        model="bot/1", training_file=file.id, method=method, suffix="slow", extra_body={"spec": long}
    )

    def step() -> int:
        details: Any = client.fine_tuning.jobs.retrieve(job.id).status_details  # type: ignore[attr-defined]
        return details["step"] or 0

    def freed(times: int) -> bool:
        events = client.fine_tuning.jobs.list_events(job.id, limit=100)
        return sum(event.message == "The cluster is free of it." for event in events) == times

    until(lambda: step() >= 4)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    until(lambda: freed(1))
    kept = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number
    assert kept >= 4
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    until(lambda: step() > kept)
    assert client.fine_tuning.jobs.retrieve(job.id).attempt == 2  # type: ignore[attr-defined]
    kill_driver(job.id)
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).attempt == 3 and step() > kept + 20)  # type: ignore[attr-defined]
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    until(lambda: freed(2))
    kept = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number
    budget = {"tokens": 1 + 20 * 10}  # more than one step of 20 rows, and far less than the rest
    again: Any = client.post(f"/fine_tuning/jobs/{job.id}/retry", body={"budget": budget}, cast_to=FineTuningJob)
    until(lambda: client.fine_tuning.jobs.retrieve(again.id).status == "failed")
    ended: Any = client.fine_tuning.jobs.retrieve(again.id)
    assert ended.error.code == "budget_exceeded"
    assert ended.spent["tokens"] >= budget["tokens"]
    assert ended.retried_from == {"job": job.id, "step": kept}
    steps = [event.data["step"] for event in client.fine_tuning.jobs.list_events(again.id) if event.type == "metrics"]
    assert all(step >= kept for step in steps)  # one in so many steps becomes an event
    assert ended.status_details["step"] > kept
