"""A server in this process over two versions that say what they are told, and Debian's Chromium to look at it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from bco_ray.config import load_spec
from bco_ray.control.deciding import RayState
from bco_ray.control.http import estimate_routes
from bco_ray.control.keys import KeyStore, Limits
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.webhooks import WebhookStore
from bco_ray.feedback.statistics import LogSums
from bco_ray.schema import Message, Record
from bco_ray.service.app import extension, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.args import ServeArgs, describe_version
from bco_ray.serving.engines.protocol import GenRequest, Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.routed import RoutedCatalog
from bco_ray.serving.versions.routes import Route, Table
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.files import write_json
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.records import commit_records, load_records
from bco_ray.storage.registry import Registry
from bco_ray.storage.scored import ScoredManifest, commit_scored
from bco_ray.testing.checkpoints import write_checkpoint
from bco_ray.testing.records import settled, write_records
from bco_ray.testing.tiny import write_tiny_model

STEPS = 16
HELD_SECONDS = 600
REFUSED = (
    ("unknown_label", "'meh' is none of the labels", '{"prompt": "<img src=x onerror=alert(3)>", "label": "meh"}'),
    ("unreadable_json", "no JSON", "{<script>alert(4)</script>"),
)
DROPS = {"unknown_label": 1, "unreadable_json": 1}
MATCHING = {"auc": 0.61, "auc_low": 0.55, "auc_high": 0.67, "applied": True, "ess_fraction": 0.83}
EVALUATION = {"eval_auc": 0.91, "eval_rewards/margins": 1.5}
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@dataclass
class Engine:
    """Of one version: says these words, one by one."""

    words: list[str]

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        last = len(self.words) - 1
        for index, word in enumerate(self.words):
            await asyncio.sleep(0.01)
            yield TokenEvent([index], word, "stop" if index == last else None)

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)


@dataclass
class Trainer:
    """A cluster whose jobs leave behind what a training does, step by step, and register `bot`. `hold`: until set, none
    gets beyond its eighth step. `reads`: whether they read their log.
    """

    storage: Path
    model: Path
    says: dict[str, RayState] = field(default_factory=dict)
    hold: threading.Event = field(default_factory=threading.Event)
    reads: bool = True

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        self.says[submission] = "running"
        threading.Thread(target=self._train, args=(submission, job_id, attempt), daemon=True).start()

    def state(self, submission: str) -> RayState:
        return self.says.get(submission, "unknown")

    def stop(self, submission: str) -> None:
        self.says[submission] = "stopped"

    def _train(self, submission: str, job_id: str, attempt: int) -> None:
        directory, run = JobDirectory(self.storage, job_id), self.storage / "runs" / job_id
        spec = load_spec(directory.spec).model_dump(mode="json")
        spec["training"]["learning_rate"] = 1e-5
        if self.reads:
            self._read(self.storage / "records" / job_id)
        directory.write("resolved", {"spec": spec, "run": str(run), "records": job_id})
        run.mkdir(parents=True, exist_ok=True)
        with directory.log.open("a") as log:
            log.write(f"attempt {attempt} <b>of</b> {spec['training']['max_length']}\n")
        for step in range(STEPS):
            if step == STEPS // 2:
                write_checkpoint(str(run / "checkpoints"), step, identity={})
                self._wait(submission)
            if self.says[submission] != "running":
                return
            self._step(directory, run, step)
            time.sleep(0.05)
        scored = self.storage / "scored" / job_id
        scored.mkdir(parents=True, exist_ok=True)
        commit_scored(scored, ScoredManifest(inputs={}, read=60, kept=60, drops=DROPS, matching=MATCHING))
        votes = {"votes": {"read": 20, "kept": 20}, "scored": job_id}
        facts = {"run": str(run), "parent": "bot/1", **votes, "evaluation": EVALUATION}
        version = Registry(self.storage).register("bot", self.model, facts)
        directory.write("outcome", {"model": version.reference, "trained_tokens": 900, "evaluation": EVALUATION})
        self.says[submission] = "succeeded"

    def _wait(self, submission: str) -> None:
        """Until it may go on, or is stopped."""
        deadline = time.monotonic() + HELD_SECONDS
        while not self.hold.wait(0.05) and self.says[submission] == "running":
            assert time.monotonic() < deadline, "held, and never let go"

    def _read(self, directory: Path) -> None:
        """A log of 60 votes from three months, and two rows that are none."""
        rows = [
            Record(
                id=f"v{n}", prompt=[Message(role="user", content=f"question {n % 30}")],
                completion=[Message(role="assistant", content="yes " * (1 + n % 7))],
                label=n % 3 > 0, label_raw="up", source="web", user=f"user-{n % 9}", created_at=1.75e9 + 1.5e5 * n,
            )
            for n in range(60)
        ]  # fmt: skip
        table = settled(rows)
        write_records(directory, rows, drops=DROPS)
        found = load_records(directory)
        statistics = LogSums.of(table, DROPS).state_dict()
        commit_records(directory, found.model_copy(update={"read": 62, "statistics": statistics}))
        refused = [
            {"file": "/logs/a.jsonl", "position": n, "reason": reason, "detail": detail, "raw": raw.encode()}
            for n, (reason, detail, raw) in enumerate(REFUSED)
        ]
        Quarantine(directory / "quarantine" / "import").write(("a", 0), 62, refused)

    def _step(self, directory: JobDirectory, run: Path, step: int) -> None:
        far = step / STEPS
        row = {
            "step": step, "total_steps": STEPS, "loss": 0.7 - 0.4 * far, "auc": 0.5 + 0.4 * far, "tokens": 60,
            "rewards/chosen": far, "rewards/rejected": -far, "rewards/margins": 2 * far, "delta": 0.01 * step,
        }  # fmt: skip
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps(row) + "\n")
        write_json(
            run / "status.json",
            {"step": step + 1, "total_steps": STEPS, "checkpoint_step": 8 if 2 * step >= STEPS else None},
        )
        progress = {"phase": "train", "percent": 100 * far, "eta_seconds": 5.0 * (1 - far), "at": time.time()}
        directory.write("progress", progress)


@dataclass
class Site:
    """A running server. `engines`: what `bot/1` and `bot/2` say; `key` None: there are no keys; `trainer`: where its
    jobs run.
    """

    url: str
    storage: Path
    engines: dict[str, Engine]
    log: FeedbackLog
    key: str | None
    trainer: Trainer

    @property
    def registry(self) -> Registry:
        """As it is now."""
        return Registry(self.storage)

    def votes(self) -> list[Any]:
        """All that were cast, in order."""
        return self.log.list_votes(limit=1000)[0]


@contextmanager
def looked_after(reconciler: Reconciler) -> Iterator[None]:
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            reconciler.run_once()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


@contextmanager
def on_a_socket(api: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1)


@pytest.fixture(scope="module")
def open_site(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """`open_site(guarded=False)`: one more server, up to the end of the module."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patient = partial(estimate_routes.router, seconds=240)  # tests share a machine
        patch.setattr(estimate_routes, "router", patient)

        def opened(*, guarded: bool = False) -> Site:
            storage = tmp_path_factory.mktemp("storage")
            registry = Registry(storage)
            for run in ("one", "two"):
                facts = {"run": run, "parent": "/models/base", "votes": {"read": 100, "kept": 90}}
                registry.register("bot", tiny_dir, {**facts, "evaluation": {"eval_auc": 0.7 if run == "one" else 0.8}})
            registry.promote("bot", 1)
            engines = {f"bot/{n}": Engine(["Hello", " from", f" {n}"]) for n in (1, 2)}
            args = ServeArgs(follow=["bot"], storage=storage)
            routes = {name: Route(describe_version(name, tiny_dir, args), name) for name in engines}
            catalog = RoutedCatalog(engines.__getitem__)  # type: ignore[arg-type]
            table = Table(1, routes, {"bot": "bot/1", "bot@prod": "bot/1"})
            with ThreadPoolExecutor() as elsewhere:  # a loop runs in this thread while there is a browser
                elsewhere.submit(lambda: asyncio.run(catalog.switch(table))).result()
            engine, keys, log = open_database(storage), KeyStore.open(storage), FeedbackLog.open(storage)
            key = keys.create("acme", "n", "admin", limits=Limits(), actor="test")[1] if guarded else None
            more = extension(ServiceArgs(follow=["bot"], storage=storage), engine, keys)
            trainer = Trainer(storage, tiny_dir)
            trainer.hold.set()
            stack.callback(trainer.hold.set)
            reconciler = Reconciler(job_store(engine, WebhookStore(engine)), trainer, storage)
            stack.enter_context(looked_after(reconciler))
            url = stack.enter_context(on_a_socket(create_api(catalog, log, keys=keys, more=more)))
            stack.callback(log.close)
            return Site(url, storage, engines, log, key, trainer)

        yield opened


@pytest.fixture(scope="module")
def shared_site(open_site: Callable[..., Site]) -> Site:
    return open_site()


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The module's server without keys."""
    for number, engine in enumerate(shared_site.engines.values(), 1):
        engine.words = ["Hello", " from", f" {number}"]
    return shared_site


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, gone before another module begins: as long as there is one a loop runs in this thread. Else skips."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (make install)")
    found = next((path for path in BROWSERS if shutil.which(path)), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def until(page: Any, expression: str) -> None:
    """In place of Playwright's own, which evaluates it within the page if it does not hold at once: the policy of the
    page's scripts forbids that.
    """
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


@pytest.fixture
def new_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`new_page(**options of a context)`: an empty profile. What the browser complains of fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def opened(**options: Any) -> Any:
        contexts.append(chromium.new_context(reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)  # tests share a machine
        page.wait_for_function = partial(until, page)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog opened: {dialog.message}"))
        return page

    yield opened
    for context in contexts:
        context.close()
    refused = "Failed to load resource"  # the browser's own line for every 4xx
    assert not [text for text in complaints if refused not in text]
