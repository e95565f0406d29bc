"""`bco jobs` against the real routes on a port: what a person types, sees and is told. The cluster is a fake."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from rich.console import Console

from bco_ray.cli import job_client, job_follow, main
from bco_ray.cli.job_client import AwayError, JobServer, Patience, RefusedError
from bco_ray.cli.job_live import Screen
from bco_ray.control.deciding import RayState
from bco_ray.control.job import News
from bco_ray.control.jobs import JobStore
from bco_ray.control.keys import KeyStore, Limits
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.webhooks import WebhookStore
from bco_ray.errors import ConflictError
from bco_ray.service.app import extension, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.http.api import create_api
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.registry import Registry

VOTES = b"".join(
    json.dumps({"prompt": f"q{n}", "completion": "yes", "label": bool(n % 2)}).encode() + b"\n" for n in range(20)
)
NASTY = "\x1b[2Jgone [bold]not bold[/] \x9b31m"


@dataclass
class Site:
    """A server without keys, whose jobs' drivers are what the test says."""

    url: str
    storage: Path
    store: JobStore
    keys: KeyStore
    says: dict[str, RayState] = field(default_factory=dict)

    def directory(self, job_id: str) -> JobDirectory:
        return JobDirectory(self.storage, job_id)

    def runs(self, job_id: str, attempt: int = 1) -> None:
        wait_for(lambda: self.says.get(f"{job_id}-{attempt}") == "running" and self.status(job_id) == "running")

    def succeeds(self, job_id: str) -> None:
        self.directory(job_id).write(
            "outcome", {"model": "bot/1", "trained_tokens": 9, "evaluation": {"eval_auc": 1.0}}
        )
        self.says[f"{job_id}-1"] = "succeeded"

    def fails(self, job_id: str, message: str) -> None:
        self.directory(job_id).write("error", {"attempt": 1, "code": "bad_data", "message": message})
        self.says[f"{job_id}-1"] = "failed"

    def status(self, job_id: str) -> str:
        return self.store.get(job_id).status

    def only(self) -> str:
        """The id of the newest job, when there is one."""
        wait_for(lambda: bool(self.store.page(None)[0]))
        return self.store.page(None)[0][0].id

    def tell(self, job_id: str, *news: News) -> None:
        """Events, whatever else is going on with the job."""
        for _ in range(100):
            with suppress(ConflictError):
                self.store.note(self.store.get(job_id), news)
                return
        raise AssertionError("never quiet")

    def steps(self, job_id: str, *steps: int) -> None:
        rows = [
            {
                "step": n,
                "train_loss": 1 / (n + 1),
                "loss": 1 / (n + 1),
                "rewards/margins": n / 10,
                "delta": 0.1,
                "auc": 0.5,
            }
            for n in steps
        ]
        self.tell(job_id, *(News(f"Step {row['step']}", type="metrics", data=row) for row in rows))


def wait_for(so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.01)


@contextmanager
def listening(api: Any, port: int = 0) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@contextmanager
def again_and_again(act: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.02):
            act()

    thread = threading.Thread(target=loop)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_models: Any) -> Iterator[Site]:
    storage = tmp_path / "runs"
    args = ServiceArgs(model_id="m/1", model_dir=tmp_path, storage=storage)
    engine, keys, log = open_database(storage), KeyStore.open(storage), FeedbackLog.open(storage)
    api = create_api(no_models, log, keys=keys, more=extension(args, engine, keys))
    site = Site("", storage, job_store(engine, WebhookStore(engine)), keys)
    cluster: Any = SimpleNamespace(
        submit=lambda submission, *_: site.says.setdefault(submission, "running"),
        state=lambda submission: site.says.get(submission, "unknown"),
        stop=lambda submission: site.says.update({submission: "stopped"}),
    )
    with listening(api) as site.url, again_and_again(Reconciler(site.store, cluster, storage).run_once):
        monkeypatch.setenv("BCO_BASE_URL", f"{site.url}/v1/")
        yield site
    log.close()


@dataclass
class Shell:
    """`bco jobs` in this process; `err` of the last command is one line."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    err: str = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it printed on stdout; the exit code is checked."""
        found, out, self.err = self.any(*words)
        assert found == code, (out, self.err)
        return out

    def any(self, *words: str) -> tuple[int, str, str]:
        self.patch.setattr("sys.argv", ["bco", "jobs", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        return code, out, " ".join(err.split())

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def create(self, *words: str) -> str:
        """The id of a new job on the server's own log."""
        return self("create", "--model", "/models/base", "--training-file", "feedback", *words).strip()


@pytest.fixture
def bco(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    for name in ("BCO_BASE_URL", "BCO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for module, name, seconds in (
        (job_follow, "_FIRST_PAUSE_SECONDS", 0.02),
        (job_client, "_FIRST_PAUSE_SECONDS", 0.02),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(job_follow, "_LONGEST_PAUSE_SECONDS", 0.1)
    return Shell(monkeypatch, capsys)


# --- asking for a job ------------------------------------------------------------------------------------------------


def test_flags_and_a_local_log(bco: Shell, site: Site, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_bytes(VOTES)
    out = bco(
        "create", "--model", "/models/base", "--training-file", str(tmp_path / "votes.jsonl"), "--suffix", "bot",
        "--n-epochs", "3", "--beta", "0.2", "--learning-rate", "1e-5", "--batch-size", "16", "--seed", "5",
        "--priority", "2", "--metadata", "team=a", "--metadata", "note=x=y", "--set", "training.num_workers=1",
    )  # fmt: skip
    assert re.fullmatch(r"ftjob-[0-9a-f]{24}\n", out)
    assert f"Follow it with: bco jobs get {out.strip()} --watch" in bco.err
    request = site.store.get(out.strip()).request
    assert re.fullmatch(r"file-[0-9a-f]{24}", request.pop("training_file"))
    numbers = {"n_epochs": 3, "batch_size": 16, "learning_rate": 1e-5, "beta": 0.2}
    assert request == {
        "model": "/models/base", "method": {"type": "bco", "bco": {"hyperparameters": numbers}}, "suffix": "bot",
        "seed": 5, "metadata": {"team": "a", "note": "x=y"}, "spec": {"training": {"num_workers": 1}}, "priority": 2,
    }  # fmt: skip
    assert (site.storage / "files").is_dir()


def test_of_a_spec_only_what_it_says(bco: Shell, site: Site, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: bot\nmodel: {base: /models/base, adapter: {r: 4}}\ndata: {feedback: /logs/*.jsonl, validation: 0.1}\n"
        "objective: {loss: kto, beta: 0.3}\noutput: {storage: elsewhere}\n"
    )
    job = site.store.get(bco("create", str(spec), "--set", "training.seed=3").strip())
    assert job.request == {
        "model": "/models/base", "training_file": "/logs/*.jsonl", "suffix": "bot", "method": {"type": "kto"},
        "spec": {"model": {"adapter": {"r": 4}}, "data": {"validation": 0.1}, "objective": {"beta": 0.3},
                 "training": {"seed": 3}},
    }  # fmt: skip
    assert (job.spec["model"]["adapter"]["r"], job.spec["objective"]["loss"]) == (4, "kto")
    flags = ("--method", "bce", "--beta", "0.5", "--suffix", "other", "--training-file", "feedback")
    job = site.store.get(bco("create", str(spec), *flags, "--set", "output.register_as=third").strip())
    assert (job.spec["objective"]["loss"], job.spec["objective"]["beta"]) == ("bce", 0.5)
    assert (job.request["suffix"], job.request["training_file"]) == ("other", "feedback")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say --model and --training-file"),
        (("--model", "m"), "say --training-file"),
        (("--model", "m", "--training-file", "feedback", "--set", "traning.seed=1"), "did you mean training?"),
        (("--model", "m", "--training-file", "feedback", "--metadata", "x"), "--metadata x: write it as key=value"),
        (("--model", "m", "--training-file", "feedback", "--deadline", "soon"), "--deadline soon: say a time"),
        (("--model", "m", "--training-file", "feedback", "--png", "x.jpg"), "--png x.jpg: name a .png file"),
        (("--model", "/m", "--training-file", "feedback", "--method", "ppo"), "method.type: ppo: there are bco"),
        (("--model", "/m", "--training-file", "feedback", "--batch-size", "1"), "batch_size"),
        (("spec.yaml",), "no such spec file"),
    ],
)
def test_what_cannot_be_is_wrong_usage(bco: Shell, site: Site, words: tuple[str, ...], says: str) -> None:
    bco("create", *words, code=2)
    assert says in bco.err
    assert site.store.page(None)[0] == []


def test_a_relative_pattern_means_one_file_here(bco: Shell, site: Site, tmp_path: Path) -> None:
    bco.patch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    words = ("create", "--model", "/m", "--training-file")
    for pattern in ("logs/*.jsonl", "logs"):
        bco(*words, pattern, code=2)
        assert f"{pattern}: here that is" in bco.err
    (tmp_path / "logs" / "a.jsonl").write_bytes(VOTES)
    assert site.store.get(bco(*words, "logs/*.jsonl").strip()).request["training_file"].startswith("file-")
    (tmp_path / "logs" / "b.jsonl").write_bytes(VOTES)
    bco(*words, "logs/*.jsonl", code=2)
    for other in ("/logs/*.jsonl", "s3://bucket/x", "feedback:3"):
        assert site.store.get(bco(*words, other).strip()).request["training_file"] == other


def test_a_spec_with_two_logs(bco: Shell, site: Site, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: a\nmodel: {base: b}\ndata: {feedback: [x.jsonl, y.jsonl]}\n")
    bco("create", str(tmp_path / "s.yaml"), code=2)
    assert "s.yaml: data.feedback: a request names one log, not 2" in bco.err


def test_the_same_key_is_the_same_job(bco: Shell, site: Site) -> None:
    assert bco.create("--idempotency-key", "k") == bco.create("--idempotency-key", "k")
    assert bco.create() != bco.create()
    bco("create", "--model", "/other", "--training-file", "feedback", "--idempotency-key", "k", code=1)
    assert "This Idempotency-Key was used for another request" in bco.err


def test_a_reply_that_was_lost_makes_no_second_job(bco: Shell, site: Site) -> None:
    """A proxy that drops the first reply, after the server has made the job."""
    lost = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        body, headers = (
            await request.body(),
            {"content-type": "application/json", "idempotency-key": request.headers["idempotency-key"]},
        )
        reply = await asyncio.to_thread(
            JobServer(site.url, "").post, scope["path"].removeprefix("/v1"), json.loads(body), headers
        )
        lost.append(reply["id"])
        await (Response("lost", 502) if len(lost) == 1 else JSONResponse(reply))(scope, receive, send)

    with listening(proxy) as url:
        assert bco.create("--url", url) == lost[0] == lost[1]
    assert "502" in bco.err
    assert len(site.store.page(None)[0]) == 1


# --- looking ---------------------------------------------------------------------------------------------------------


def test_list_and_get(bco: Shell, site: Site) -> None:
    first, second = bco.create("--metadata", "team=a"), bco.create("--metadata", "team=b")
    assert [one["id"] for one in bco.json("list")["data"]] == [second, first]
    assert [one["id"] for one in bco.json("list", "--metadata", "team=a")["data"]] == [first]
    assert [one["id"] for one in bco.json("list", "--after", second)["data"]] == [first]
    page = bco.json("list", "--limit", "1")
    assert (page["object"], page["has_more"], len(page["data"])) == ("list", True, 1)
    out = bco("list", "--limit", "1")
    assert second in out
    assert first not in out
    assert f"--after {second}" in bco.err
    assert bco.json("get", first)["metadata"] == {"team": "a"}
    assert "team a" in bco("get", first)
    assert bco.json("checkpoints", first)["data"] == []
    bco("checkpoints", first)
    bco("get", "ftjob-none", code=1)
    assert "ftjob-none: no such job." in bco.err


def test_followed_until_it_succeeded(bco: Shell, site: Site, tmp_path: Path) -> None:
    def driver() -> None:
        job_id = site.only()
        site.runs(job_id)
        site.directory(job_id).write("progress", {"phase": "train", "percent": 40.0, "eta_seconds": 30})
        wait_for(lambda: site.store.get(job_id).details.get("percent") == 40)
        site.steps(job_id, *range(30))
        site.succeeds(job_id)

    with running(driver):
        job = json.loads(
            bco(
                "create",
                "--model",
                "/m",
                "--training-file",
                "feedback",
                "--wait",
                "--json",
                "--png",
                str(tmp_path / "c.png"),
            )
        )
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", "bot/1")
    assert "running" in bco.err
    assert f"{job['id']} succeeded: bot/1" in bco.err
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "bot/1" in bco("get", job["id"], "--watch", "--png", str(tmp_path / "d.png"))
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_followed_until_it_failed(bco: Shell, site: Site) -> None:
    def driver() -> None:
        site.runs(job_id := site.only())
        site.fails(job_id, f"no usable votes {NASTY}")

    with running(driver):
        bco("create", "--model", "/m", "--training-file", "feedback", "--wait", code=1)
    assert "failed: bad_data: no usable votes ·[2Jgone [bold]not bold[/] ·31m" in bco.err
    assert "bad_data" in bco("get", site.only())
    assert bco.json("get", site.only(), "--wait", code=1)["error"]["code"] == "bad_data"


def test_a_paused_job_is_waited_for(bco: Shell, site: Site) -> None:
    job_id, out, resumed = bco.create(), StringIO(), False
    site.runs(job_id)
    bco("pause", job_id, "--wait")
    screen = Screen(Console(file=out, width=200))

    def show(job: dict[str, Any], news: list[dict[str, Any]]) -> None:
        nonlocal resumed
        screen.show(job, news)
        if not resumed:
            resumed = True
            site.store.move(job_id, "queued", News("resumed"))
            site.directory(job_id).write("outcome", {"model": "bot/1"})

    job = job_follow.follow(JobServer(site.url, ""), job_id, job_follow.ended, show, Patience(1, print))
    assert job["status"] == "succeeded"
    assert f"{job_id}  paused, waiting for somebody to resume it" in out.getvalue()


def test_cancel_pause_and_resume_until_it_is_so(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    site.runs(job_id)
    assert bco("pause", job_id, "--wait") == f"{job_id} paused\n"
    assert not site.store.get(job_id).holds_cluster
    assert bco.json("resume", job_id, "--wait")["status"] == "running"
    assert site.says[f"{job_id}-2"] == "running"
    bco("cancel", job_id, "--wait")
    assert (site.status(job_id), site.store.get(job_id).holds_cluster) == ("cancelled", False)
    bco("resume", job_id, code=1)
    assert f"{job_id} is cancelled and cannot become queued." in bco.err
    bco("get", job_id, "--wait", code=1)


def test_a_wait_for_what_somebody_else_prevents_fails(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    bco("cancel", job_id)
    server = JobServer(site.url, "")
    job = job_follow.follow(server, job_id, job_follow.begun, lambda *_: None, Patience(1, print))
    assert job["status"] == "cancelled"


def test_steps_before_the_first_have_no_curves(bco: Shell, site: Site, tmp_path: Path) -> None:
    bco("get", bco.create(), "--png", str(tmp_path / "c.png"), code=1)
    assert "there are no curves to draw" in bco.err


# --- events and logs -------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_once_over_many_pages(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    site.runs(job_id)
    site.steps(job_id, *range(250))
    told = messages(bco("events", job_id, "--all"))
    assert told[0] == "Created fine-tuning job."
    assert [m for m in told if m.startswith("Step")] == [f"Step {n}" for n in range(250)]
    assert messages(bco("events", job_id)) == told[-20:]
    assert [one["message"] for one in bco.json("events", job_id)["data"]] == told[:-21:-1]
    assert [one["message"] for one in bco.json("events", job_id, "--all")["data"]] == told[::-1]


def test_events_are_followed_to_the_end_of_the_job(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    site.runs(job_id)

    def driver() -> None:
        for start in range(0, 360, 120):
            site.steps(job_id, *range(start, start + 120))
            time.sleep(0.05)
        site.succeeds(job_id)

    with running(driver):
        out = bco("events", job_id, "--follow", "--json", "--all")
    told = [json.loads(line) for line in out.splitlines()]
    assert len({event["id"] for event in told}) == len(told)
    assert [e["data"]["step"] for e in told if e["type"] == "metrics"] == list(range(360))
    assert "The job has successfully completed." in [event["message"] for event in told]


def test_an_event_steers_no_terminal(bco: Shell, site: Site) -> None:
    job_id = bco.create("--metadata", f"team={NASTY}")
    site.tell(job_id, News(f"two\nlines {NASTY}", level="warn"))
    for words in (("events", job_id), ("list",), ("get", job_id)):
        out = bco(*words)
        assert "[bold]not bold[/]" in out.replace("\n", ""), words
        assert not set("\x1b\x9b") & set(out), words
    bco("cancel", job_id)
    bco("get", job_id, "--wait", code=1)
    assert "two lines ·[2Jgone [bold]not bold[/]" in bco.err


def test_logs(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    site.runs(job_id)
    site.directory(job_id).log.write_bytes(b"\xff\x00raw\r\n\x1b[0m")
    assert raw(bco, "logs", job_id) == b"\xff\x00raw\r\n\x1b[0m"
    assert raw(bco, "logs", job_id, terminal=True).decode() == "\N{REPLACEMENT CHARACTER}·raw\n·[0m"


@dataclass
class Breaking:
    """STAND-IN for `GET .../logs?offset=`: a log of many pieces; every connection breaks after two of them."""

    pieces: list[bytes]
    offsets: list[int] = field(default_factory=list)

    def api(self) -> FastAPI:
        api, whole = FastAPI(), b"".join(self.pieces)

        async def two(offset: int) -> AsyncGenerator[bytes]:
            size = len(self.pieces[0])
            for start in (offset, offset + size):
                yield whole[start : start + size]
                await asyncio.sleep(0.02)
            if offset + 2 * size < len(whole):
                raise ConnectionResetError("cut")

        @api.get("/v1/fine_tuning/jobs/{job_id}")
        def job(job_id: str) -> dict[str, Any]:
            over = bool(self.offsets) and self.offsets[-1] + 2 * len(self.pieces[0]) >= len(whole)
            return {"id": job_id, "status": "succeeded" if over else "running"}

        @api.get("/v1/fine_tuning/jobs/{job_id}/logs")
        def logs(offset: int = 0, follow: bool = False) -> StreamingResponse:
            self.offsets.append(offset)
            return StreamingResponse(two(offset), media_type="text/plain")

        return api


def test_a_log_goes_on_where_the_connection_broke(bco: Shell) -> None:
    stand_in = Breaking([f"line {n:04}\n".encode() for n in range(11)])
    with listening(stand_in.api()) as url:
        assert raw(bco, "logs", "ftjob-1", "-f", "--url", url) == b"".join(stand_in.pieces)
    assert len(stand_in.offsets) >= 6


# --- servers that are not there, or not for us -----------------------------------------------------------------------


def test_no_server_says_how_to_start_one(bco: Shell) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    bco("list", "--url", url, code=1)
    assert f"{url}: no server answers there. Start one with: bco serve; or name yours with --url" in bco.err
    bco.patch.setattr("bco_ray.cli.job_request._SEND_SECONDS", 0.1)
    bco("create", "--model", "m", "--training-file", "feedback", "--idempotency-key", "mine", "--url", url, code=1)
    assert "add: --idempotency-key mine --training-file feedback" in bco.err


def test_a_server_of_something_else(bco: Shell) -> None:
    api = FastAPI()
    api.get("/v1/fine_tuning/jobs")(lambda: Response("<html>", media_type="text/html"))
    with listening(api) as url:
        bco("list", "--url", url, code=1)
        assert "no bco-ray server" in bco.err
        bco("get", "x", "--url", url, code=1)
        assert "says 404 and no more" in bco.err


def test_keys(bco: Shell, site: Site, tmp_path: Path) -> None:
    key = site.keys.create("acme", "ci", "submit", limits=Limits(), actor="test")[1]
    reader = site.keys.create("acme", "ci", "read", limits=Limits(), actor="test")[1]
    (made := tmp_path / "made").mkdir()
    (made / "config.json").write_text("{}")
    Registry(site.storage).register("m", made, {})
    wait_for(lambda: bco.any("list")[0] == 1)
    assert "Set $BCO_API_KEY to a key of this server" in bco.any("list")[2]
    bco.patch.setenv("BCO_API_KEY", reader)
    bco("create", "--model", "m@prod", "--training-file", "feedback", code=1)
    assert "Set $BCO_API_KEY" in bco.err
    assert bco.json("list")["data"] == []
    bco.patch.setenv("BCO_API_KEY", key)
    bco("create", "--model", "m@prod", "--training-file", "feedback")
    assert len(bco.json("list")["data"]) == 1


def test_a_server_that_restarts_is_waited_for(bco: Shell) -> None:
    port, api, looks, status = free_port(), FastAPI(), threading.Semaphore(0), ["running"]
    api.get("/v1/fine_tuning/jobs/{i}")(lambda i: {"id": i, "status": status[0]})

    @api.get("/v1/fine_tuning/jobs/{i}/events")
    def events(i: str) -> dict[str, Any]:
        looks.release()
        return {"data": [], "has_more": False}

    up, told = threading.Event(), threading.Event()

    def serve() -> None:
        with listening(api, port):
            up.set()
            looks.acquire(timeout=20)
            looks.acquire(timeout=20)
        time.sleep(0.5)
        status[0] = "succeeded"
        with listening(api, port):
            told.wait(60)

    with running(serve):
        assert up.wait(60)
        try:
            bco("get", "ftjob-1", "--wait", "--json", "--url", f"http://127.0.0.1:{port}")
        finally:
            told.set()
    assert "no server answers there. Asking again ... The server answers again." in bco.err


def test_patience_keeps_to_what_the_server_asks_for_and_ends() -> None:
    answers: list[Any] = [AwayError("busy", after=0.3), AwayError("busy", after=0.0), "here"]
    said: list[str] = []

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    began = time.monotonic()
    assert Patience(5, said.append)(ask) == "here"
    assert time.monotonic() - began >= 0.3
    assert said == ["busy Asking again ...", "The server answers again."]
    answers[:] = [AwayError("busy", after=9)]
    with pytest.raises(AwayError):
        Patience(5, said.append)(ask)
    answers[:] = [RefusedError("no", 404), "never asked for"]
    with pytest.raises(RefusedError):
        Patience(5, said.append)(ask)


def test_an_interrupt_stops_the_looking_and_not_the_job(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    site.runs(job_id)
    command = [sys.executable, "-c", "from bco_ray.cli import main; main()", "jobs", "get", job_id, "--watch"]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard)
    assert child.stderr
    assert child.stderr.readline().startswith(job_id.encode())
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, b"")
    assert f"The job goes on. Look again with: bco jobs get {job_id} --watch" in err.decode()
    assert site.status(job_id) == "running"


# --- what it looks like ----------------------------------------------------------------------------------------------


def a_job(**details: Any) -> dict[str, Any]:
    return {"id": "ftjob-1", "status": "running", "status_details": {"phase": "train", **details}}


def some_steps(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"e{n}", "type": "metrics", "level": "info", "message": "", "created_at": 0,
         "data": {"step": n, "loss": 1 / (n + 1), "rewards/margins": n / 10, "auc": 0.75, "delta": float("nan")}}
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_shows_bar_metrics_and_curves_within_its_width(width: int) -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=60, no_color=True, color_system=None)
    with Screen(console) as screen:
        screen.show(a_job(percent=42.0, step=42, total_steps=100, eta_seconds=90, waiting_for=NASTY), some_steps(30))
    lines = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    text = " ".join(" ".join(lines).split())
    for said in (
        "42%",
        "step 42/100",
        "0:01:30 left",
        "waiting for ·[2Jgone",
        "loss 0.03333",
        "AUC 0.75",
        "reward margin",
    ):
        assert said in text
    assert max(map(len, lines)) <= width
    assert any("\N{BRAILLE PATTERN BLANK}" <= c <= "\N{BRAILLE PATTERN DOTS-12345678}" for c in text)
    assert "\x1b[3" not in out.getvalue(), "no colour"


def test_elsewhere_a_line_when_something_changed() -> None:
    out = StringIO()
    with Screen(Console(file=out, width=20)) as screen:
        for percent in range(10):
            screen.show(a_job(percent=float(percent)), some_steps(percent))
        screen.show(a_job(percent=9.0, problem="one worker was lost"), [])
    first, second = out.getvalue().splitlines()
    assert first == "ftjob-1  running train 0%"
    assert second.endswith("problem: one worker was lost")


def test_importing_the_command_pulls_nothing_heavy_in() -> None:
    heavy = ("ray", "torch", "openai", "httpx", "plotext", "matplotlib", "fastapi")
    code = f"import bco_ray.cli.jobs, bco_ray.cli.app, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


# --- routes that are made elsewhere: each test has a stand-in for one ------------------------------------------------


def stand_in(reply: dict[str, Any], status: int = 200) -> tuple[FastAPI, list[tuple[str, Any]]]:
    """Answers every POST so, and remembers what was asked."""
    api, asked = FastAPI(), list[tuple[str, Any]]()

    @api.post("/{path:path}")
    async def post(path: str, request: Request) -> JSONResponse:
        asked.append((path, await request.json()))
        return JSONResponse(reply, status)

    return api, asked


def test_standin_an_estimate_is_a_table_with_dashes(bco: Shell) -> None:
    reply = {
        "object": "fine_tuning.job.estimate", "rows": 1000, "usable_rows": 900, "label_rate": 0.5, "steps": None,
        "exact": False, "memory": {"weights": 2 << 30, "activations": None}, "seconds": 3700, "basis": f"x {NASTY}",
        "warnings": ["few thumbs-down"],
    }  # fmt: skip
    api, asked = stand_in(reply)
    words = (
        "create",
        "--model",
        "m",
        "--training-file",
        "feedback",
        "--dry-run",
        "--budget-hours",
        "2",
        "--deadline",
        "+6h",
    )
    with listening(api) as url:
        out = " ".join(bco(*words, "--url", url).split())
        assert bco.json(*words, "--url", url) == reply
    for said in (
        "usable votes 900",
        "steps -",
        "weights 2.00 GiB",
        "GPU hours -",
        "time 1:01:40",
        "estimated from a sample",
        "thumbs-down",
    ):
        assert said in out
    assert "\x1b" not in out
    path, body = asked[0]
    assert (path, body["model"]) == ("v1/fine_tuning/jobs/estimate", "m")
    assert body["budget"]["hours"] == 2
    assert abs(body["budget"]["deadline"] - time.time() - 6 * 3600) < 60


def test_retried_it_is_a_new_job_with_a_budget_of_its_own(bco: Shell, site: Site) -> None:
    job_id = bco.create()
    bco("retry", job_id, code=1)
    assert "cancel it, and wait" in bco.err
    bco("cancel", job_id, "--wait")
    words = ("--budget-tokens", "7", "--budget-gpu-hours", "1.5", "--metadata", "a=b", "--idempotency-key", "k")
    again = bco.json("retry", job_id, *words)
    assert again["id"] == bco.json("retry", job_id, *words)["id"] != job_id
    assert (again["budget"], again["metadata"]) == ({"gpu_hours": 1.5, "tokens": 7}, {"a": "b"})
    assert again["retried_from"] == {"job": job_id, "step": None}
    bco("retry", job_id, "--step", "40", code=2)
    assert "no checkpoint of step 40; it has none" in bco.err


def test_a_server_that_does_not_know_a_field_is_quoted(bco: Shell) -> None:
    error = {"message": "budget: Extra inputs are not permitted\x1b[2J", "type": "x", "param": "budget", "code": None}
    api, _ = stand_in({"error": error}, 400)
    with listening(api) as url:
        bco("create", "--model", "m", "--training-file", "feedback", "--budget-hours", "2", "--url", url, code=2)
    assert "budget: Extra inputs are not permitted·[2J" in bco.err


def test_a_quota_that_is_used_up_is_not_asked_again(bco: Shell) -> None:
    """It is a 429 as a busy server's is; but no waiting mends it, and no job may have been made."""
    error = {"message": "used up", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    api, asked = stand_in({"error": error}, 429)
    with listening(api) as url:
        bco("create", "--model", "m", "--training-file", "feedback", "--url", url, code=1)
    assert len(asked) == 1
    assert bco.err.strip().endswith("used up")


# --- small things ----------------------------------------------------------------------------------------------------


@contextmanager
def running(act: Callable[[], None]) -> Iterator[None]:
    """Beside the body; what went wrong there is raised here."""
    wrong: list[BaseException] = []

    def caught() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  told by the thread that waits
            wrong.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    yield
    thread.join(timeout=30)
    if wrong:
        raise wrong[0]


def messages(out: str) -> list[str]:
    return [line.split(maxsplit=3)[3] for line in out.splitlines()]


class Stdout(TextIOWrapper):
    """Keeps the bytes; a terminal if it is told so."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__(BytesIO(), encoding="utf-8", newline="\n")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def raw(bco: Shell, *words: str, terminal: bool = False) -> bytes:
    """What `bco jobs WORDS` wrote, byte for byte."""
    stdout = Stdout(terminal)
    bco.patch.setattr("sys.stdout", stdout)
    assert bco.any(*words)[0] == 0
    stdout.flush()
    return stdout.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
