"""A server on a real socket over an engine that says what it is told, for the tests of the HTTP surface."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.protocol import Adapter, Engine, EngineDeadError, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.http.settings import Settings
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer


@dataclass
class Script:
    """An engine that says `events` (an exception is raised where it stands) and keeps what it was asked."""

    events: list[TokenEvent | Exception] = field(default_factory=list)
    asked: list[GenRequest] = field(default_factory=list)
    closed: int = 0
    delay_seconds: float = 0.0

    def says(self, *texts: str, finish: str = "stop") -> None:
        last = len(texts) - 1
        self.events = [TokenEvent([i], text, finish if i == last else None) for i, text in enumerate(texts)]

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        self.asked.append(request)
        try:
            for event in list(self.events):
                await asyncio.sleep(self.delay_seconds)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed += 1

    async def load_adapter(self, adapter: Adapter) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...

    async def health(self) -> Health:
        return Health(not any(isinstance(event, EngineDeadError) for event in self.events), "scripted")

    async def load(self) -> Load:
        return Load(1, 2, kv_tokens=3, kv_capacity=4)


@dataclass
class HttpSite:
    """A running server and its parts; the model is called `helper/3`, `helper@prod`, `helper`."""

    url: str
    engine: Any
    log: FeedbackLog

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=60, **options)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http("POST", path, json=fields)


@contextmanager
def on_a_socket(api: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="error", timeout_graceful_shutdown=2, backlog=2048))
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


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1)


@pytest.fixture(scope="module")
def open_site(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., HttpSite]]:
    """`open_site(engine=..., **settings)`: one more server, up to the end of the module."""
    with ExitStack() as stack:

        def opened(engine: Engine | None = None, template: str | None = None, **settings: Any) -> HttpSite:
            storage = tmp_path_factory.mktemp("storage")
            tokenizer = load_tokenizer(tiny_dir)
            tokenizer.chat_template = template or tokenizer.chat_template
            args = ServeArgs(model_id="helper/3", model_dir=tiny_dir, storage=storage, aliases=["helper@prod"])
            script, log = engine or Script(), FeedbackLog.open(storage)
            catalog = FixedCatalog(Target(describe(args), tokenizer, script))
            url = stack.enter_context(on_a_socket(create_api(catalog, log, Settings(**settings))))
            stack.callback(log.close)
            return HttpSite(url, script, log)

        yield opened


@pytest.fixture(scope="module")
def shared_site(open_site: Callable[..., HttpSite]) -> HttpSite:
    return open_site()


@pytest.fixture
def http_site(shared_site: HttpSite) -> HttpSite:
    """The module's server with its defaults; says `Hi there` and has been asked nothing."""
    shared_site.engine.says("Hi", " there")
    shared_site.engine.asked, shared_site.engine.closed, shared_site.engine.delay_seconds = [], 0, 0.0
    return shared_site
