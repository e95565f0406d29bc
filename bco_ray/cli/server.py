"""`bco serve`: a registered model (or a directory) on a port until it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import ray

from bco_ray.config import load_spec
from bco_ray.control.keys import KeyStore
from bco_ray.control.ray_jobs import stop_running
from bco_ray.errors import SpecError
from bco_ray.pipeline.cluster import cluster
from bco_ray.pipeline.served import serve_args
from bco_ray.service.app import build
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.server import check_free, check_loopback, start_server
from bco_ray.storage.files import path_of
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import console

_LOOK_SECONDS = 2.0
_JOB_SECONDS = 60.0
"""What drivers may take for their last checkpoints."""


def what_to_serve(what: str, storage: Path) -> tuple[str, Path]:
    """(model reference, storage). A spec means its registered model; nothing means the only model there is."""
    if what.endswith((".yaml", ".yml")):
        spec = load_spec(what)
        return spec.registry_name, path_of(spec.output.storage)
    if what:
        return what, storage
    names = Registry(storage).names()
    if len(names) != 1:
        raise SpecError(f"{storage}: say which model to serve; registered are: {', '.join(names) or 'none'}.")
    return names[0], storage


def serve(
    model: str,
    storage: Path,
    state: Path | None = None,
    *,
    host: str,
    port: int,
    database: str | None = None,
    allow: Sequence[str] = (),
) -> None:
    """Blocks until SIGINT or SIGTERM, then takes the server down, with a checkpoint of every job. `allow`: places."""
    _require_known(model, storage)
    more = {"database": database, "allowed_places": list(allow) or None}
    args = ServiceArgs.model_validate(serve_args(model, storage, state).model_dump() | more)
    guarded = KeyStore.open(args.home, database).any()
    if not guarded:
        check_loopback(host)
    check_free(host, port)
    name = args.model_id or args.follow[0]
    console.print(f"starting {name} ...", highlight=False)
    stop = threading.Event()
    with cluster(workers=2):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
        args = args.model_copy(update={"num_gpus": gpus})
        handle = start_server(args, host=host, port=port, build=build, guarded=guarded)
        who = "who has a key: bco keys list" if guarded else "loopback only: no API keys are configured"
        console.print(f"{name} on {handle.url} [dim]({who})[/]")
        console.print(curl_line(handle.url, name), soft_wrap=True, highlight=False, markup=False)
        told: dict[str, str] = {}
        while not stop.wait(_LOOK_SECONDS):
            told = _tell_refused(handle.refused(), told)
        console.print("stopping ...")
        handle.stop()
        if not os.environ.get("RAY_ADDRESS"):  # the cluster is this command's own and ends with it
            _stop_jobs()


def _stop_jobs() -> None:
    try:
        stopped = stop_running(_JOB_SECONDS)
    except (OSError, RuntimeError) as error:
        console.print(f"jobs cannot be stopped with a checkpoint: {error}", markup=False, soft_wrap=True)
        return
    if stopped:
        console.print(f"{stopped} jobs were stopped with a checkpoint; they go on when a server is started again.")


def _require_known(what: str, storage: Path) -> None:
    """Raises SpecError for what is neither a directory nor registered: nobody means the hub by a bare name."""
    name, names = re.split(r"[@/]", what)[0], Registry(storage).names()
    if path_of(what).expanduser().exists() or name in names or what.startswith(("/", ".", "~")):
        return
    there = f"registered there are: {', '.join(names)}" if names else "nothing is registered there"
    raise SpecError(f"{what}: no such directory and no such model in {storage} ({there}). Is it the right --storage?")


def _tell_refused(refused: dict[str, str], told: dict[str, str]) -> dict[str, str]:
    """What should be served and cannot, said once."""
    for reference, reason in refused.items():
        if told.get(reference) != reason:
            console.print(f"[bold red]{reference} is not served:[/] {reason}", highlight=False, soft_wrap=True)
    return refused


def curl_line(url: str, model: str) -> str:
    """A command that asks the server something."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
