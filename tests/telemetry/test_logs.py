"""What a log line says, and whose it is."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from bco_ray.errors import StorageError
from bco_ray.pipeline import driver
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry import configure_logging, log_context, logs
from bco_ray.web import errors
from bco_ray.web.access import Access, RequestRate
from bco_ray.web.edge import Edge

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def in_json(fresh: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setenv(logs.FORMAT, "json")
    return fresh


def lines(capsys: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_one_object_per_line(in_json: logging.Logger, capsys: Captured) -> None:
    configure_logging()
    in_json.warning("two\nlines, %s", "é☃")
    (line,) = lines(capsys)
    assert set(line) == {"time", "level", "logger", "message"}
    assert (line["level"], line["logger"], line["message"]) == ("warning", "bco_ray", "two\nlines, é☃")
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_an_exception_is_a_field(in_json: logging.Logger, capsys: Captured) -> None:
    configure_logging()
    try:
        raise StorageError("no room")
    except StorageError:
        in_json.exception("not stored")
    (line,) = lines(capsys)
    assert line["message"] == "not stored"
    assert line["exception"].splitlines()[-1].endswith("StorageError: no room")


def test_whose_a_line_is(in_json: logging.Logger, capsys: Captured) -> None:
    configure_logging(job_id="ftjob-1", attempt=2)
    with log_context(request_id="req-1"):
        with log_context(project="acme"):
            in_json.info("inner")
        in_json.info("outer")
    configure_logging(run="bot-1f")
    in_json.info("after")
    inner, outer, after = lines(capsys)
    assert (inner["request_id"], inner["project"], inner["job_id"], inner["attempt"]) == ("req-1", "acme", "ftjob-1", 2)
    assert "project" not in outer
    assert "request_id" not in after
    assert after["run"] == "bot-1f"


def test_tasks_and_threads_of_the_work_know_it(in_json: logging.Logger, capsys: Captured) -> None:
    async def work() -> None:
        with log_context(request_id="req-1"):
            await asyncio.gather(asyncio.to_thread(in_json.info, "thread"), asyncio.create_task(task()))
        in_json.info("over")

    async def task() -> None:
        in_json.info("task")

    configure_logging()
    asyncio.run(work())
    assert {line["message"]: line.get("request_id") for line in lines(capsys)} == {
        "thread": "req-1", "task": "req-1", "over": None,
    }  # fmt: skip


def test_another_process_is_told_by_its_environment(
    in_json: logging.Logger, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in logs.environment(job_id="ftjob-1", attempt=3).items():
        monkeypatch.setenv(name, value)
    configure_logging(run="bot-1f")
    in_json.info("at work")
    (line,) = lines(capsys)
    assert (line["job_id"], line["attempt"], line["run"]) == ("ftjob-1", 3, "bot-1f")


@pytest.mark.parametrize("damaged", ["", "{", "[]", "null"])
def test_an_environment_that_is_none_of_ours_is_passed_over(
    fresh: logging.Logger, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setenv(logs.CONTEXT, damaged)
    configure_logging()


def test_text_is_the_default_and_names_the_request_once(fresh: logging.Logger, capsys: Captured) -> None:
    configure_logging(job_id="ftjob-1")
    fresh.info("began")
    with log_context(request_id="req-1"):
        fresh.info("took a vote")
        fresh.error("request req-1: no room")
    began, took, failed = capsys.readouterr().err.splitlines()
    assert began.endswith("INFO bco_ray: began")
    assert took.endswith("INFO bco_ray: took a vote [request req-1]")
    assert failed.endswith("ERROR bco_ray: request req-1: no room")


def test_another_format_is_said_to_be_none(
    fresh: logging.Logger, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.FORMAT, "xml")
    configure_logging()
    assert "BCO_LOG_FORMAT: xml: there are text and json" in capsys.readouterr().err


def api(logger: logging.Logger) -> FastAPI:
    served = FastAPI()
    errors.install(served)
    served.add_middleware(Access, find=lambda _: None, configured=lambda: False, rate=RequestRate())
    served.add_middleware(Edge, served=lambda *_: None, send_request_id=True)

    @served.get("/fine")
    async def fine() -> None:
        await asyncio.to_thread(logger.info, "fine")

    @served.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("oh")

    return served


@pytest.mark.parametrize(("path", "message"), [("/fine", "fine"), ("/broken", "request mine-7: oh")])
def test_lines_of_a_request_tell_the_id_that_its_reply_tells(
    in_json: logging.Logger, capsys: Captured, path: str, message: str
) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api(in_json), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers={"x-request-id": "mine-7"})

    configure_logging()
    answer = asyncio.run(ask())
    (line,) = lines(capsys)
    assert answer.headers["x-request-id"] == line["request_id"] == "mine-7"
    assert line["message"] == message
    assert ("exception" in line) == (path == "/broken")
    if path == "/fine":
        assert line["project"] == "default"


def test_a_drivers_lines_tell_its_job(in_json: logging.Logger, capsys: Captured, tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "ftjob-1")
    directory.path.mkdir(parents=True)
    directory.write("origin", {"project": "acme", "traceparent": None})
    directory.spec.write_text("no_such_section: 1\n")
    assert driver.main(tmp_path, "ftjob-1", 2) != 0
    told = lines(capsys)
    assert [line["level"] for line in told] == ["info", "error"]
    assert all((line["job_id"], line["attempt"], line["project"]) == ("ftjob-1", 2, "acme") for line in told)
    assert "no_such_section" in told[1]["message"]
