"""A name that moves between versions under load: requests that fail, and the longest time without an answer.

    python benchmarks/serving_swaps.py [--moves 10] [--clients 4] [--rounds 3]

The whole service on Ray Serve, small models. `moves` is our rollout: whole weights, each move starts an engine beside
the old one. `still` is the same load for as long without any move: what is longest there is the machine's own unrest.
`redeploy` is the way without us: the application with the other model is deployed in place of the first, one replica.
The sides take turns. A gap is the time between one answer's end and the next one's, of all clients together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LONGEST_SECONDS = 120
PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
console = Console(width=100)


@dataclass
class Clients:
    """They ask without a pause."""

    count: int
    ended: list[float] = field(default_factory=list)
    failed: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def under_load(self, work: Callable[[], None]) -> dict[str, float]:
        """What they saw while `work` ran."""
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        began = time.monotonic()
        work()
        took = time.monotonic() - began
        self.over.set()
        for thread in threads:
            thread.join(LONGEST_SECONDS)
        ends = sorted([began, *(end for end in self.ended if end >= began)])
        gaps = [after - before for before, after in pairwise(ends)]
        return {"answers": len(gaps), "failed": self.failed, "longest_gap_seconds": max(gaps), "seconds": took}

    def _ask(self) -> None:
        body = {"model": "helper@prod", "prompt": "Hello", "max_tokens": 12, "temperature": 0}
        with httpx.Client(base_url=URL, timeout=60) as client:
            while not self.over.is_set():
                try:
                    reply = client.post("/v1/completions", json=body)
                    self.failed += reply.is_error
                    if not reply.is_error:
                        self.ended.append(time.monotonic())
                except httpx.HTTPError:
                    self.failed += 1


def prod() -> str | None:
    """The version behind the alias."""
    try:
        models = httpx.get(f"{URL}/v1/models", timeout=60).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError):  # in the middle of being deployed anew
        return None
    return next((model["root"] for model in models if model["id"] == "helper@prod"), None)


def until_served(reference: str) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while prod() != reference:
        if time.monotonic() > deadline:
            raise TimeoutError(reference)
        time.sleep(0.05)


def measure(storage: Path, moves: int, clients: int) -> dict[str, dict[str, float]]:
    """One round of all sides."""
    from bco_ray.serving.args import ServeArgs
    from bco_ray.serving.server import start_server
    from bco_ray.storage.registry import Registry

    registry, found = Registry(storage), dict[str, dict[str, float]]()

    def move() -> None:
        for n in range(moves):
            registry.promote("helper", 2 - n % 2)
            until_served(f"helper/{2 - n % 2}")

    registry.promote("helper", 1)
    server = start_server(ServeArgs(follow=["helper"], storage=storage, poll_seconds=0.2), port=PORT)
    found["moves"] = Clients(clients).under_load(move)
    found["still"] = Clients(clients).under_load(lambda: time.sleep(found["moves"]["seconds"]))
    server.stop()
    found["redeploy"] = redeployed(storage, moves, clients)
    return found


def redeployed(storage: Path, moves: int, clients: int) -> dict[str, float]:
    """One application that is deployed again and again, as one does with one replica and nothing beside it."""
    from ray import serve

    one, two = (plain(storage / "models" / "helper" / str(n), f"helper/{n}", storage) for n in (1, 2))

    def move() -> None:
        for n in range(moves):
            serve.run((two, one)[n % 2], name="plain", route_prefix="/")
            until_served(f"helper/{2 - n % 2}")

    serve.run(one, name="plain", route_prefix="/")
    until_served("helper/1")
    try:
        return Clients(clients).under_load(move)
    finally:
        serve.delete("plain")


def plain(directory: Path, reference: str, storage: Path) -> Any:
    """Our API over the embedded engine as one deployment."""
    from ray import serve

    class Plain:
        async def __init__(self) -> None:
            from bco_ray.serving.args import ServeArgs, describe
            from bco_ray.serving.engines.batching.engine import HFEngine
            from bco_ray.serving.versions.catalog import FixedCatalog, Target
            from bco_ray.text import load_tokenizer

            args = ServeArgs(model_id=reference, model_dir=directory, storage=storage, aliases=["helper@prod"])
            engine = HFEngine(directory, context_window=512)
            await engine.start()
            self._catalog = FixedCatalog(Target(describe(args), load_tokenizer(directory), engine))

        def __serve_build_asgi_app__(self) -> Any:
            from bco_ray.serving.http.api import create_api
            from bco_ray.storage.feedback_log import FeedbackLog

            return create_api(self._catalog, FeedbackLog.open(storage), send_request_id=False)

    return serve.deployment(serve.ingress()(Plain), name="Plain", num_replicas=1, max_ongoing_requests=1000).bind()


def main() -> None:
    """All rounds; the medians are written."""
    from bco_ray.config.environment import prepare_environment

    prepare_environment()
    from bco_ray.pipeline.cluster import cluster
    from bco_ray.storage.registry import Registry
    from bco_ray.testing.tiny import write_tiny_model

    options = arguments()
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory, cluster(workers=2, object_store_bytes=200_000_000):
        storage = Path(directory)
        for seed in (1, 2):
            Registry(storage).register("helper", write_tiny_model(storage / f"made-{seed}", seed=seed), {})
        for _ in range(options.rounds):
            rounds.append(measure(storage, options.moves, options.clients))
            console.print(rounds[-1])
    worst = {side: {name: max(one[side][name] for one in rounds) for name in rounds[0][side]} for side in rounds[0]}
    gaps = {side: median(one[side]["longest_gap_seconds"] for one in rounds) for side in worst}
    table = Table("side", "answers", "failed (worst)", "longest gap, median s", "worst s")
    for side, values in worst.items():
        numbers = [f"{values['answers']:.0f}", f"{values['failed']:.0f}", f"{gaps[side]:.2f}"]
        table.add_row(side, *numbers, f"{values['longest_gap_seconds']:.2f}")
    console.print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result = {"machine": machine, "moves": options.moves, "clients": options.clients, "rounds": rounds}
    options.results.joinpath("serving-swaps.json").write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
