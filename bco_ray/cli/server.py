"""`bco serve`: a registered model (or a directory) on a port until it is told to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import ray

from bco_ray.config import load_spec
from bco_ray.errors import SpecError
from bco_ray.pipeline.cluster import cluster
from bco_ray.pipeline.served import serve_args
from bco_ray.serving.server import check_free, check_loopback, start_server
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import console


def what_to_serve(what: str, storage: Path) -> tuple[str, Path]:
    """(model reference, storage). A spec means its registered model; nothing means the only model there is."""
    if what.endswith((".yaml", ".yml")):
        spec = load_spec(what)
        return spec.registry_name, Path(spec.output.storage)
    if what:
        return what, storage
    names = Registry(storage).names()
    if len(names) != 1:
        raise SpecError(f"{storage}: say which model to serve; registered are: {', '.join(names) or 'none'}.")
    return names[0], storage


def serve(model: str, storage: Path, *, host: str, port: int) -> None:
    """Blocks until SIGINT or SIGTERM, then takes the server down."""
    args = serve_args(model, storage)
    check_loopback(host)
    check_free(host, port)
    name = args.model_id or args.follow[0]
    console.print(f"starting {name} ...", highlight=False)
    stop = threading.Event()
    with cluster(workers=2):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
        handle = start_server(args.model_copy(update={"num_gpus": gpus}), host=host, port=port)
        console.print(f"{name} on {handle.url} [dim](loopback only: no API keys are configured)[/]")
        console.print(curl_line(handle.url, name), soft_wrap=True, highlight=False, markup=False)
        while not stop.wait(1.0):
            pass
        console.print("stopping ...")
        handle.stop()


def curl_line(url: str, model: str) -> str:
    """A command that asks the server something."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
