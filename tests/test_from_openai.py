"""docs/from-openai.md cannot rot: its Python runs in order against the HTTP API, and prints what it says it prints."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai.types.fine_tuning import FineTuningJob, job_create_params
from openai.types.fine_tuning.dpo_hyperparameters_param import DpoHyperparametersParam

from bco_ray.config import load_spec
from bco_ray.control.deciding import RayState
from bco_ray.control.delivering import Deliverer
from bco_ray.control.keys import KeyStore, Limits
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.webhooks import WebhookStore
from bco_ray.feedback.formats.registry import detect
from bco_ray.service.app import extension, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.protocol import Adapter, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.registry import Registry
from bco_ray.storage.stores import open_store
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer

PAGE = (Path(__file__).parents[1] / "docs" / "from-openai.md").read_text()
STEPS = 4


def blocks() -> list[tuple[str, str]]:
    """(language and name, text) of every fenced block that has a language."""
    return re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", PAGE, flags=re.M | re.S)


def side(diff: str, sign: str) -> str:
    """Before (`-`) or after (`+`) of a diff block."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in (" ", sign))


PYTHON = [side(text, "+") if kind == "diff" else text for kind, text in blocks() if kind in {"python", "diff"}]
FILES = {kind.removeprefix("jsonl "): text for kind, text in blocks() if kind.startswith("jsonl ")}


class Engine:
    """Says `Hi`."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def load_adapter(self, adapter: Adapter) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        yield TokenEvent([1], "Hi", "stop")

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)


@dataclass
class Cluster:
    """Where a job with the loss `bco` or `sft` leaves what a training leaves; others run until they are stopped."""

    storage: Path
    model: Path
    says: dict[str, RayState] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        self.says.setdefault(submission, "running")

    def state(self, submission: str) -> RayState:
        self.asked[submission] += 1
        directory = JobDirectory(self.storage, submission.rpartition("-")[0])
        if self.says.get(submission) == "running" and self.asked[submission] == 3:
            self._train(directory, submission)
        return self.says.get(submission, "unknown")

    def stop(self, submission: str) -> None:
        self.says[submission] = "stopped"

    def _train(self, directory: JobDirectory, submission: str) -> None:
        spec = load_spec(directory.spec)
        if spec.objective.loss not in {"bco", "sft"}:
            return
        run = self.storage / "runs" / spec.name
        run.mkdir(parents=True)
        rows = [{"step": step, "total_steps": STEPS, "loss": 0.7 - 0.1 * step} for step in range(STEPS)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        checkpoints = CheckpointStore(open_store(str(run / "checkpoints")))
        for step in (2, STEPS):
            checkpoints.commit(
                CheckpointManifest(
                    step=step, attempt=1, workers=1, layout="even", created_at=1.5, identity={}, state={},
                    metrics={"loss": 0.5}, shards=[], files={},
                )
            )  # fmt: skip
        directory.write("resolved", {"spec": spec.model_dump(mode="json"), "run": str(run)})
        made = Registry(self.storage).register(spec.output.register_as or "", self.model, {})
        directory.write("outcome", {"model": made.reference, "trained_tokens": 9, "evaluation": {}})
        self.says[submission] = "succeeded"


@dataclass
class Site:
    """What was delivered to webhooks: (url, body, headers)."""

    delivered: list[tuple[str, str, Mapping[str, str]]]

    def about(self, job_id: str) -> list[tuple[str, str, Mapping[str, str]]]:
        return [one for one in self.delivered if json.loads(one[1])["data"]["id"] == job_id]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server at $OPENAI_BASE_URL, and its jobs looked after; the working directory has the page's files."""
    storage, model = tmp_path / "storage", write_tiny_model(tmp_path / "model", seed=1)
    args = ServiceArgs(model_id="support-bot/1", model_dir=model, storage=storage, allowed_places=["/models"])
    storage.mkdir()
    engine, keys, log = open_database(storage), KeyStore.open(storage), FeedbackLog.open(storage)
    served = describe(ServeArgs(model_id="support-bot/1", model_dir=model, storage=storage))
    catalog = FixedCatalog(Target(served, load_tokenizer(model), Engine()))
    app = create_api(catalog, log, keys=keys, more=extension(args, engine, keys))
    site, webhooks = Site([]), WebhookStore(engine)

    async def send(url: str, body: str, headers: Mapping[str, str]) -> int:
        site.delivered.append((url, body, headers))
        return 200

    reconciler = Reconciler(job_store(engine, webhooks), Cluster(storage, model), storage)
    deliverer = Deliverer(webhooks, send)

    def look() -> None:
        reconciler.run_once()
        asyncio.run(deliverer.run_once(time.time()))

    work = tmp_path / "work"
    work.mkdir()
    for name, text in FILES.items():
        (work / name).write_text(text)
    monkeypatch.chdir(work)
    monkeypatch.setattr("bco_ray.control.outgoing.resolved", lambda _host: ["93.184.216.34"])
    with on_a_socket(app) as url, again_and_again(look):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", keys.create("acme", "n", "admin", limits=Limits(), actor="test")[1])
        yield site
    log.close()


@contextmanager
def on_a_socket(app: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@contextmanager
def again_and_again(look: Any) -> Iterator[None]:
    over = threading.Event()

    def looking() -> None:
        while not over.wait(0.05):
            look()

    thread = threading.Thread(target=looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=30)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the page opens files as OpenAI's own does
def test_the_python_of_the_page_does_what_it_says(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in PYTHON:
        exec(compile(block, "docs/from-openai.md", "exec"), names)
    prints = [line for block in PYTHON for line in block.splitlines() if "print(" in line]
    said = [line.partition("  # ")[2] for line in prints]
    assert all(said), "a print without what it prints"
    assert capsys.readouterr().out.splitlines() == said
    deadline = time.monotonic() + 30
    while not (about := site.about(names["other"].id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    ((url, body, headers),) = about
    assert url == "https://hooks.example.com/bco"
    assert names["on_webhook"](body.encode(), headers) == ("fine_tuning.job.cancelled", names["other"].id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        names["on_webhook"](body.encode() + b" ", headers)
    assert names["client"].fine_tuning.jobs.retrieve(names["voted"].id).status == "succeeded"


@pytest.mark.parametrize("diff", [text for kind, text in blocks() if kind == "diff"])
def test_what_stood_there_before_is_python_too(diff: str) -> None:
    before, after = (ast.parse(side(diff, sign)) for sign in "-+")
    assert ast.unparse(before) != ast.unparse(after)


def detected(text: str, *, demonstrations: bool) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    return detect(rows, where="f", demonstrations=demonstrations).name


def test_its_data_are_of_the_formats_it_names() -> None:
    assert {name: detected(text, demonstrations="conversations" in name) for name, text in FILES.items()} == {
        "conversations.jsonl": "openai-chat", "votes.jsonl": "canonical", "pairs.jsonl": "openai-preference",
    }  # fmt: skip


def table(first_header: str) -> list[list[str]]:
    rows = re.search(rf"^\| {first_header}[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", PAGE, flags=re.M)
    assert rows is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows[1].splitlines()]


def test_every_field_of_a_request_is_in_the_table() -> None:
    named = {cell.strip(" `") for cell, *_ in table("OpenAI ")}
    request = set(job_create_params.JobCreateParams.__annotations__)
    assert request | set(DpoHyperparametersParam.__annotations__) <= named
    assert named <= request | set(DpoHyperparametersParam.__annotations__) | set(FineTuningJob.model_fields)


def test_the_classes_of_errors_have_these_statuses() -> None:
    for name, status, _ in table("class of the client"):
        assert getattr(openai, name.strip(" `")).status_code == int(status)
