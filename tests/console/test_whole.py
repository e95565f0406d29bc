"""From a thumb to a promoted version in a real browser, on the whole server: real Ray, real training, real files."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SERVER = Path(__file__).parents[1] / "service" / "whole_server.py"
LONG_MS = 240_000
TYPED = {
    "batch size": "50", "n epochs": "2", "max length": "64", "every steps": "2",
}  # fmt: skip


@dataclass
class Running:
    url: str
    storage: Path


@pytest.fixture(scope="module")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    storage, temporary = tmp_path_factory.mktemp("storage"), tempfile.mkdtemp(prefix="bco-console-", dir="/tmp")
    registry = Registry(storage)
    registry.register("bot", write_tiny_model(tmp_path_factory.mktemp("made"), seed=1), {})
    registry.promote("bot", 1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log, command = storage / "server.log", [sys.executable, str(SERVER), str(storage), str(port), temporary]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while not ready(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        assert ready(port), log.read_text()[-3000:]
        yield Running(f"http://127.0.0.1:{port}", storage)
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


def end_all(temporary: str) -> None:
    """Every process that names this cluster's directory."""
    found = subprocess.run(["pgrep", "-f", temporary], capture_output=True, text=True, check=False).stdout.split()
    for pid in map(int, found):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def votes(path: Path) -> Path:
    texts = ("yes of course", True), ("no never", False)
    rows = (
        {"id": f"v{n}", "prompt": f"question {n % 50}?", "completion": texts[n % 2][0], "label": texts[n % 2][1]}
        for n in range(200)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    return path


def asked(page: Any, url: str) -> str:
    """The version that answers `bot` now."""
    page.goto(f"{url}/#/chat")
    page.get_by_label("Version").select_option("bot")
    if page.get_by_role("button", name="New conversation").count():
        page.get_by_role("button", name="New conversation").click()
    if not page.get_by_label("Tokens at most").is_visible():
        page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Tokens at most").fill("4")
    page.get_by_label("Your message").fill("question 1?")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Thumb up").wait_for()
    return str(page.locator(".by").inner_text())


def answers_with(page: Any, url: str, version: str) -> None:
    deadline = time.monotonic() + 300
    while (said := asked(page, url)) != version:
        assert time.monotonic() < deadline, f"{said} still answers"


def test_the_loop(server: Running, new_page: Callable[..., Any], tmp_path: Path) -> None:
    page = new_page()
    page.set_default_timeout(LONG_MS)
    assert asked(page, server.url) == "bot/1"
    page.get_by_role("button", name="Thumb up").click()
    page.get_by_text("Saved.", exact=True).wait_for()

    page.goto(f"{server.url}/#/jobs/new")
    page.get_by_label("Model", exact=True).fill("bot@prod")
    page.get_by_label("Upload a file of votes").set_input_files(votes(tmp_path / "votes.jsonl"))
    page.get_by_text("is votes.jsonl").wait_for()
    page.get_by_label("suffix", exact=True).fill("bot")
    page.get_by_label("learning rate", exact=True).first.fill("1e-3")
    page.get_by_text("Every other setting").click()
    for label, text in TYPED.items():
        page.get_by_label(label, exact=True).first.fill(text)
    page.get_by_role("group", name="deepspeed").get_by_label("zero stage").select_option("0")
    for section in ("scoring", "training"):
        page.get_by_role("group", name=section).get_by_label("num workers").fill("1")
    page.get_by_role("button", name="Create the job").click()
    page.get_by_role("img", name="Loss over").wait_for()
    page.locator(".badge.is-succeeded").wait_for()
    page.get_by_role("link", name="bot/2").wait_for()
    page.get_by_text("attempt 1").first.wait_for()
    page.get_by_role("region", name="Checkpoints").first.wait_for()

    page.goto(f"{server.url}/#/data")
    page.get_by_text("200 (>99 %)").wait_for()
    page.get_by_text("A classifier tells the prompts").wait_for()
    page.locator("pre", has_text="no JSON").wait_for()

    page.goto(f"{server.url}/#/models/bot")
    page.get_by_role("button", name="Promote bot/2").click()
    page.get_by_role("button", name="Yes, prod means bot/2").click()
    page.get_by_role("row", name="bot@prod").get_by_role("cell", name="2", exact=True).wait_for()
    answers_with(page, server.url, "bot/2")
    page.goto(f"{server.url}/#/models/bot")
    page.get_by_role("button", name="Roll back prod").click()
    page.get_by_role("button", name="Yes, roll back").click()
    page.get_by_role("row", name="bot@prod").get_by_role("cell", name="1", exact=True).wait_for()
    answers_with(page, server.url, "bot/1")
    assert Registry(server.storage).aliases("bot") == {"prod": 1}
