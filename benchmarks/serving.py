"""Serving speed, side by side: ours, `transformers serve` with continuous batching, and `generate` one by one.

    python benchmarks/serving.py --out DIR --quick     # one round, the small model: does it work here?
    python benchmarks/serving.py --out DIR             # three rounds of everything

Every measurement starts the side as a process of its own with pinned threads, warms it up, and loads it with 1, 4, 16
and 64 clients that ask again as soon as they are answered. The sides take turns: A B C, A B C. Greedy everywhere; the
answers of the sides must be the same (`same` is the share that is). Figures are ratios within a round, medians over
rounds. `overhead` asks ours for 64 tokens without HTTP (`bare`), over uvicorn (`ours`), and on Ray Serve (`serve`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from serving_load import Answered, Load, closed_loop, over_http
from serving_task import CASES, WINDOW, Ask, Case, write_asks, write_model

HERE = Path(__file__).parent
MODEL_ID = "bench/1"
READY_SECONDS = 180
Loads = dict[int, Load]
"""By number of clients."""

console = Console(width=110)


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    out: Path
    clients: tuple[int, ...]
    per_client: int
    threads: int
    max_batch: int

    def count(self, clients: int) -> int:
        """Requests: each client has some, and one client has enough for a median."""
        return max(clients * self.per_client, 4 * self.per_client)


def sides_of(case_name: str, wanted: Sequence[str]) -> list[str]:
    """Who takes part; ours first."""
    possible = ("ours", "bare", "serve") if case_name == "overhead" else ("ours", "transformers", "naive")
    return [side for side in possible if side in wanted or side == "ours"]


def command_of(side: str, model: Path, port: int, bench: Bench) -> list[str]:
    """How the side is started. Without sizes for its cache, `transformers serve` takes nine tenths of the memory."""
    if side != "transformers":
        return [sys.executable, str(HERE / "serving_side.py"), side, str(model), str(port), str(bench.max_batch)]
    block = 32
    blocks = max(bench.clients) * WINDOW // 2 // block + 64
    return [
        str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--continuous-batching",
        "--attn-implementation", "sdpa", "--device", "cpu", "--dtype", "float32", "--port", str(port),
        "--cb-block-size", str(block), "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "1024",
        "--log-level", "error",
    ]  # fmt: skip


def body_of(side: str, model: Path) -> dict[str, Any]:
    """Temperature 0 kills `transformers serve`'s batching for good; it is greedy by the model's own configuration."""
    if side == "transformers":
        return {"model": str(model)}
    return {"model": MODEL_ID, "temperature": 0, "stream_options": {"include_usage": True}}


def measure(side: str, model: Path, asks: dict[int, list[Ask]], bench: Bench) -> Loads:
    """One side, once, all numbers of clients."""
    if side == "bare":
        return {clients: measure_bare(model, these, clients, bench) for clients, these in asks.items()}
    with started(side, model, bench) as url:
        return asyncio.run(loaded(url, body_of(side, model), asks))


async def loaded(url: str, body: dict[str, Any], asks: dict[int, list[Ask]]) -> Loads:
    """The figures of a server."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        stream = over_http(client, body)
        await closed_loop(stream, next(iter(asks.values()))[:2], 1)
        return {clients: await closed_loop(stream, these, clients) for clients, these in asks.items()}


def measure_bare(model: Path, asks: list[Ask], clients: int, bench: Bench) -> Load:
    """The engine's own loop, in its own process."""
    order = json.dumps({"asks": [asdict(ask) for ask in asks], "clients": clients})
    command = command_of("bare", model, 0, bench)
    done = subprocess.run(command, input=order, env=environment(bench), stdout=subprocess.PIPE, text=True, check=True)
    (found,) = json.loads(done.stdout)
    return Load(clients, found["seconds"], [Answered(**answer) for answer in found["answers"]])


@contextmanager
def started(side: str, model: Path, bench: Bench) -> Iterator[str]:
    """The side's process, ready. Raises RuntimeError with its last words if it does not come up."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = bench.out / f"{side}.log"
    with log.open("w") as output:
        command = command_of(side, model, port, bench)
        process = subprocess.Popen(command, env=environment(bench), stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{url}/{'health' if side == 'transformers' else 'readyz'}", process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{url} is not ready:\n{log.read_text()[-3000:]}")


def environment(bench: Bench) -> dict[str, str]:
    """Pinned threads (without them `transformers serve` is up to thirty times slower), no network."""
    threads = {name: str(bench.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}


def compare(name: str, case: Case, sides: list[str], rounds: int, bench: Bench) -> dict[str, Any]:
    """All rounds of a case."""
    from bco_ray.text import load_tokenizer

    model = write_model(bench.out / "models" / case.size, case.size)
    numbers = (1,) if name == "overhead" else bench.clients
    tokenizer = load_tokenizer(model)
    asks = {clients: write_asks(tokenizer, case, bench.count(clients), seed=clients) for clients in numbers}
    found: list[dict[str, Loads]] = []
    for round_number in range(rounds):
        found.append({})
        for side in sides:
            console.print(f"{name}, round {round_number + 1} of {rounds}: {side}")
            found[-1][side] = measure(side, model, asks, bench)
    rows = [row(side, clients, found) for side in sides for clients in numbers]
    console.print(table_of(f"{name}: {case}", rows))
    return {"case": asdict(case), "rows": rows, "rounds": [figures_of(one) for one in found]}


def figures_of(found: dict[str, Loads]) -> dict[str, dict[int, dict[str, float]]]:
    """Of one round."""
    return {side: {clients: load.figures() for clients, load in loads.items()} for side, loads in found.items()}


def row(side: str, clients: int, found: list[dict[str, Loads]]) -> dict[str, Any]:
    """A side's medians, and ours over its own within each round."""
    theirs = [one[side][clients].figures() for one in found]
    ours = [one["ours"][clients].figures() for one in found]
    same = [same_answers(one["ours"][clients], one[side][clients]) for one in found]
    return {
        "side": side, "clients": clients, "same": median(same),
        "medians": {name: median(one[name] for one in theirs) for name in theirs[0]},
        "ours_by": {name: median(a[name] / b[name] for a, b in zip(ours, theirs, strict=True)) for name in theirs[0]},
    }  # fmt: skip


def same_answers(ours: Load, theirs: Load) -> float:
    """The share of answers with the same text."""
    pairs = list(zip(ours.answers, theirs.answers, strict=True))
    return sum(a.text == b.text for a, b in pairs) / len(pairs)


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    """Times in milliseconds, ours / theirs in brackets."""
    table = Table(
        "side", "clients", "tokens/s", "first p50", "first p99", "whole p50", "whole p99", "same", title=title
    )
    for one in rows:
        cells = [f"{one['medians']['tokens_per_second']:.0f} ({one['ours_by']['tokens_per_second']:.2f})"]
        for name in ("first_p50", "first_p99", "whole_p50", "whole_p99"):
            cells.append(f"{1000 * one['medians'][name]:.0f} ({one['ours_by'][name]:.2f})")
        table.add_row(one["side"], str(one["clients"]), *cells, f"{one['same']:.0%}")
    return table


def main() -> None:
    """Case by case; what is done is written after each."""
    from bco_ray.config.environment import prepare_environment

    prepare_environment()
    options = arguments()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    clients = (1, 4) if options.quick else (1, 4, 16, 64)
    bench = Bench(out, clients, 1 if options.quick else 2, options.threads, options.max_batch)
    rounds = 1 if options.quick else options.rounds
    result = (out if options.quick else options.results) / "serving.json"
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found: dict[str, Any] = {}
    for name in options.cases.split(","):
        case = replace(CASES[name], size="7m") if options.quick else CASES[name]
        found[name] = compare(name, case, sides_of(name, options.sides.split(",")), rounds, bench)
        settings = {"threads": options.threads, "max_batch": options.max_batch, "rounds": rounds}
        result.write_text(json.dumps({"machine": machine, **settings, "cases": found}, indent=1) + "\n")
    console.print(f"written: {result}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="models and logs; what is there is used again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sides", default="transformers,naive,bare,serve", help="besides ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument(
        "--quick", action="store_true", help="one round, few clients, the small model, results into --out"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
