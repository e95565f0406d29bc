"""`bco chat` against a real server: piped lines in, answers out, votes in the server's log."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from bco_ray.cli import main
from bco_ray.cli.chat import visible
from bco_ray.cli.conversation import Conversation, Server, choose
from bco_ray.errors import ServingError
from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.protocol import Adapter, EngineDeadError, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import Tokenizer, load_tokenizer


@dataclass
class Counting:
    """An engine whose nth answer is `answer n.`, in two pieces; `broken`: it fails between them."""

    tokenizer: Tokenizer
    asked: list[GenRequest] = field(default_factory=list)
    pause_seconds: float = 0.0
    broken: bool = False

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def load_adapter(self, adapter: Adapter) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        self.asked.append(request)
        yield TokenEvent([1], "answer ")
        await asyncio.sleep(self.pause_seconds)
        if self.broken:
            raise EngineDeadError("the engine died")
        yield TokenEvent([2], f"{len(self.asked)}.", "stop")

    def prompt(self, number: int) -> str:
        return str(self.tokenizer.decode(self.asked[number].token_ids))


@dataclass
class Site:
    """A running server, which calls its model `helper/3`."""

    url: str
    engine: Counting
    log: FeedbackLog

    @property
    def votes(self) -> list[tuple[bool | None, str | None]]:
        """All that were cast, oldest first."""
        events, _ = self.log.list_votes(response_id=None, after=None, limit=100)
        return [(event.vote.label, event.vote.comment) for event in sorted(events, key=lambda event: event.seq)]


@contextmanager
def listening(api: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(model_dir: Path, tmp_path: Path) -> Iterator[Site]:
    args = ServeArgs(model_id="helper/3", model_dir=model_dir, storage=tmp_path, aliases=["helper@prod"])
    engine, log = Counting(load_tokenizer(model_dir)), FeedbackLog.open(tmp_path)
    with listening(create_api(FixedCatalog(Target(describe(args), engine.tokenizer, engine)), log)) as url:
        yield Site(url, engine, log)
    log.close()


@dataclass
class Terminal:
    """`bco chat` in this process, its input from a pipe."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, lines: str, *options: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr as one line)"""
        self.patch.setattr("sys.argv", ["bco", "chat", *options])
        self.patch.setattr("sys.stdin", io.StringIO(lines))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        return code, out, " ".join(err.split())


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("BCO_BASE_URL", raising=False)
    return Terminal(monkeypatch, capsys)


def test_answers_come_on_stdout_and_remember_what_was_said(site: Site, chat: Terminal) -> None:
    code, out, err = chat("Hello\nAnd then?\n", "--url", site.url, "--system", "Be brief.", "--temperature", "0.5")
    assert (code, out) == (0, "answer 1.\nanswer 2.\n")
    assert "helper/3" in err
    for said in ("system\nBe brief.", "user\nHello", "assistant\nanswer 1.", "user\nAnd then?"):
        assert said in site.engine.prompt(1)
    assert site.engine.asked[0].temperature == 0.5


def test_the_environment_names_the_server(site: Site, chat: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCO_BASE_URL", f"{site.url}/v1/")
    assert chat("Hello\n")[:2] == (0, "answer 1.\n")


def test_votes(site: Site, chat: Terminal) -> None:
    lines = "Hello\n+\n/down too short\n/undo\n/retry\n-\n- is no vote with words after it\n/quit\nunread\n"
    assert chat(lines, "--url", site.url)[:2] == (0, "answer 1.\nanswer 2.\nanswer 3.\n")
    assert site.votes == [(True, None), (False, "too short"), (None, None), (False, None)]
    events, _ = site.log.list_votes(response_id=None, after=None, limit=100)
    assert len({event.vote.response_id for event in events}) == 2
    assert {event.vote.source for event in events} == {"bco chat"}


def test_retry_replaces_the_answer_and_reset_forgets(site: Site, chat: Terminal) -> None:
    chat("Hello\n/retry\nNext\n/reset\nAnew\n", "--url", site.url)
    assert site.engine.prompt(1) == site.engine.prompt(0)
    assert "answer 2." in site.engine.prompt(2)
    assert "answer 1." not in site.engine.prompt(2)
    assert "Hello" not in site.engine.prompt(3)


def test_models_are_named_and_changed(site: Site, chat: Terminal) -> None:
    code, _, err = chat("/model\n/model helper@prod\nHello\n/help\n", "--url", site.url, "--model", "helper/3")
    assert code == 0
    assert "served: helper/3, helper@prod talking to helper/3 talking to helper@prod" in err
    assert "/undo" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("+\n", "no answer to vote on yet"),
        ("/undo\n", "no vote on the last answer"),
        ("/retry\n", "no question to ask again"),
        ("/model other\n", "The model 'other' does not exist here. Served: helper/3"),
        ("/shout\n", "/shout: no such command"),
    ],
)
def test_what_cannot_be_done_is_said(site: Site, chat: Terminal, lines: str, message: str) -> None:
    code, out, err = chat(lines, "--url", site.url)
    assert (code, out) == (1, "")
    assert message in err


def test_an_answer_that_breaks_off_ends_a_piped_chat_with_the_reason(site: Site, chat: Terminal) -> None:
    site.engine.broken = True
    code, out, err = chat("Hello\n", "--url", site.url)
    assert (code, out) == (1, "answer \n")
    assert "the engine died" in err


def test_no_server_says_how_to_start_one(chat: Terminal, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Registry(tmp_path).register("bot", tmp_path / "m", {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, _, err = chat("Hello\n", "--url", url)
    assert code == 1
    assert f"{url}: no server answers there. Start one in another terminal with: bco serve;" in err
    _, _, err = chat("", "--url", url, "--model", "bot@prod", "--storage", str(tmp_path))
    assert f"bco serve bot@prod --storage {tmp_path};" in err


def test_an_interrupt_stops_the_answer_and_not_the_chat(site: Site, tmp_path: Path) -> None:
    site.engine.pause_seconds = 30
    command = [sys.executable, "-c", "from bco_ray.cli import main; main()", "chat", "--url", site.url]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard
    )
    assert child.stdin
    assert child.stdout
    child.stdin.write(b"Hello\n")
    child.stdin.flush()
    assert child.stdout.read(7) == b"answer "
    child.send_signal(signal.SIGINT)
    site.engine.pause_seconds = 0
    out, err = child.communicate(b"-\nStill there?\n", timeout=60)
    assert (child.returncode, out) == (0, b"\nanswer 2.\n"), err
    assert site.votes == [(False, None)], "what was stopped is kept, and can be voted on"
    assert b"stopped" in err
    assert "assistant\nanswer " in site.engine.prompt(1)
    assert "Still there?" in site.engine.prompt(1)


def test_retry_asks_the_last_question_also_after_it_failed(site: Site) -> None:
    talk = Conversation(Server(site.url, "", "ann"), "helper")
    talk.ask("Hello", lambda _: None)
    kept = talk.turns
    talk.model = "nobody"
    for fails in (lambda: talk.ask("And then?", str), lambda: talk.retry(str), lambda: talk.vote(True)):
        with pytest.raises(ServingError):
            fails()
    assert talk.turns == kept
    talk.model = "helper"
    assert talk.retry(lambda _: None).text == "answer 2."
    assert [turn["content"] for turn in talk.turns] == ["Hello", "answer 1.", "And then?", "answer 2."]
    talk.model = "nobody"
    with pytest.raises(ServingError):
        talk.retry(lambda _: None)
    assert talk.turns[-1]["content"] == "answer 2.", "a new answer that never came replaces nothing"


def test_an_answer_that_broke_off_can_be_voted_on(site: Site) -> None:
    talk = Conversation(Server(site.url, "", "ann"), "helper")
    site.engine.broken = True
    with pytest.raises(ServingError, match="engine died"):
        talk.ask("Hello", lambda _: None)
    talk.vote(False)
    assert site.votes == [(False, None)]


def test_a_model_does_not_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\tc\nd\x9b") == "a·[2Jb\tc\nd·"


def test_the_only_model_is_chosen() -> None:
    assert choose(["helper/3", "helper@prod", "helper"]) == "helper"
    assert choose(["org/model-7b"]) == "org/model-7b"
    with pytest.raises(ServingError, match="--model"):
        choose(["org/a", "org/b"])
    with pytest.raises(ServingError, match=r"--model; served are: a/1, b/2"):
        choose(["a/1", "b/2"])
