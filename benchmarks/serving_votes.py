"""Votes over HTTP: how many are acknowledged per second, and how long one takes; beside plain SQLite, one by one.

    python benchmarks/serving_votes.py [--clients 32] [--votes 6000] [--rounds 3]

Every vote is on disk before its reply leaves. The server is a process of its own, the clients are one more: where there
are two cores they share them with it. `sqlite` writes the same number of small rows in a transaction each (WAL,
synchronous=FULL), in this process and without HTTP. The sides take turns; figures are medians over rounds. At the end
the log is counted: every acknowledged vote is there, once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from serving_load import percentile

from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog

HERE = Path(__file__).parent
READY_SECONDS = 60
HEAD = b"POST /v1/feedback HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
TABLE = "pragma journal_mode=wal; pragma synchronous=full; create table votes (id text, body text)"
console = Console(width=100)


def serve(storage: Path, port: int) -> None:
    """The API over a model of no importance, until SIGTERM."""
    import uvicorn

    from bco_ray.serving.args import ServeArgs, describe
    from bco_ray.serving.engines.batching.engine import HFEngine
    from bco_ray.serving.http.api import create_api
    from bco_ray.serving.pauses import keep_what_is_loaded
    from bco_ray.serving.versions.catalog import FixedCatalog, Target
    from bco_ray.testing.tiny import write_tiny_model
    from bco_ray.text import load_tokenizer

    model = write_tiny_model(storage / "model")
    engine = HFEngine(model, context_window=64)
    asyncio.run(engine.start())
    args = ServeArgs(model_id="bench/1", model_dir=model, storage=storage)
    catalog = FixedCatalog(Target(describe(args), load_tokenizer(model), engine))
    keep_what_is_loaded()
    uvicorn.run(create_api(catalog, FeedbackLog.open(storage)), port=port, log_level="warning", access_log=False)


def fill(storage: Path, answers: int) -> list[str]:
    """Answers that can be voted on; their ids."""
    log = FeedbackLog.open(storage)
    choice = Choice("Hello.", [1, 2, 3], "stop", True)
    made = [
        Completion(
            id=f"chatcmpl-{n}", model="bench/1", created_at=time.time(), messages=[{"role": "user", "content": "Hi"}],
            choices=[choice], prompt_ids=[1, 2], sampling={}, system_fingerprint="bench",
        )
        for n in range(answers)
    ]  # fmt: skip
    log.add_all(made, ())
    log.close()
    return [answer.id for answer in made]


async def vote_all(port: int, ids: Sequence[str], clients: int) -> tuple[float, list[float]]:
    """Seconds in all, and of each vote. Raises RuntimeError for one that is not acknowledged."""
    left, seconds = list(ids), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left:
            body = json.dumps({"response_id": left.pop(), "label": True, "user": "ann"}).encode()
            began = time.perf_counter()
            writer.write(HEAD % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            (length,) = (line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.removeprefix(b"content-length:")))
            seconds.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(answer.decode())
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, seconds


def over_http(clients: int, votes: int) -> dict[str, float]:
    """One round of ours."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as probe:
        storage, port = Path(directory), probe.getsockname()[1]
        ids = fill(storage, votes + clients)
        probe.close()
        command = [sys.executable, __file__, "--serve", directory, str(port)]
        server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)})
        try:
            wait_until_ready(port)
            asyncio.run(vote_all(port, ids[votes:], clients))
            took, seconds = asyncio.run(vote_all(port, ids[:votes], clients))
        finally:
            server.terminate()
            server.wait(60)
        stored = sqlite3.connect(storage / "bco.db").execute("select count(*), count(distinct response_id) from votes")
        assert stored.fetchone() == (len(ids), len(ids)), "a vote was lost or doubled"
    return figures(took, seconds)


def one_by_one(votes: int) -> dict[str, float]:
    """One round of plain SQLite."""
    with tempfile.TemporaryDirectory() as directory:
        database = sqlite3.connect(Path(directory) / "votes.db", isolation_level=None)
        database.executescript(TABLE)
        seconds, began = list[float](), time.perf_counter()
        for n in range(votes):
            at = time.perf_counter()
            database.execute("insert into votes values (?, ?)", (f"chatcmpl-{n}", "x" * 200))
            seconds.append(time.perf_counter() - at)
        took = time.perf_counter() - began
        database.close()
    return figures(took, seconds)


def figures(took: float, seconds: Sequence[float]) -> dict[str, float]:
    """Of one round; milliseconds at the median and the 99th percentile."""
    return {
        "votes_per_second": len(seconds) / took,
        "p50_ms": 1000 * percentile(seconds, 50),
        "p99_ms": 1000 * percentile(seconds, 99),
    }


def wait_until_ready(port: int) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the server is not ready")


def main() -> None:
    """All rounds; the medians are written."""
    options = arguments()
    if options.serve:
        serve(Path(options.serve[0]), int(options.serve[1]))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "sqlite": []}
    for _ in range(options.rounds):
        found["ours"].append(over_http(options.clients, options.votes))
        found["sqlite"].append(one_by_one(options.votes))
    medians = {side: {name: median(one[name] for one in rows) for name in rows[0]} for side, rows in found.items()}
    ratio = median(a["votes_per_second"] / b["votes_per_second"] for a, b in zip(*found.values(), strict=True))
    title = f"{options.clients} clients, ours by sqlite: {ratio:.2f}"
    table = Table("side", "votes/s", "p50 ms", "p99 ms", title=title)
    for side, values in medians.items():
        table.add_row(side, *(f"{value:.1f}" for value in values.values()))
    console.print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result: dict[str, Any] = {"machine": machine, "clients": options.clients, "votes": options.votes}
    result |= {"rounds": options.rounds, "medians": medians, "ours_by_sqlite": ratio}
    options.results.joinpath("serving-votes.json").write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--votes", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--serve", nargs=2, metavar=("STORAGE", "PORT"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
