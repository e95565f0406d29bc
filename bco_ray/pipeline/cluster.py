"""The Ray cluster a command works on: the one RAY_ADDRESS names, else a private one on this machine."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray
import ray.data

from bco_ray.errors import BcoError, ClusterError, InterruptedRunError, SpecError
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.telemetry import logger

SHUFFLE_BATCH_BYTES = 16 << 20
"""What a shuffling task reads at a time; Ray's own 1 GiB would be its memory."""


def cluster_for(job: ResolvedJob) -> AbstractContextManager[None]:
    """`cluster` with room for what the job's spec asks for."""
    spec = job.spec
    workers = max(spec.training.workers[0], spec.scoring.workers[1])
    return cluster(workers=workers, resources_per_worker=spec.training.resources_per_worker)


_REACH_SECONDS = 10


@contextmanager
def cluster(
    *, workers: int, resources_per_worker: dict[str, float] | None = None, object_store_bytes: int | None = None
) -> Iterator[None]:
    """Connected for the body's duration. A local cluster has room for `workers` and for Ray Data beside them.

    If Train took every CPU, Ray Data would wait for one for ever; so a local cluster always offers two more than the
    workers need, whatever the machine has. An error of ours that was raised on a worker leaves as itself, without
    Ray's traceback around it. Raises SpecError if a local machine lacks what only a bigger one has, ClusterError if
    there is no Ray to be had.
    """
    if ray.is_initialized():
        yield
        return
    needed = {name: workers * count for name, count in (resources_per_worker or {"CPU": 1}).items()}
    local = {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, math.ceil(needed.get("CPU", 0)) + 2),
        "object_store_memory": object_store_bytes,
    }
    _connect({} if os.environ.get("RAY_ADDRESS") else local)
    configure_data()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray's own handler dumps core
            signal.signal(number, _Interrupt())
    try:
        _check_room(needed)
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted. What is finished is kept: the same command goes on from there (bco train: with --resume)."
        ) from None
    except BcoError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, BcoError) else error from None
    finally:
        ray.shutdown()


def _connect(options: dict[str, Any]) -> None:
    """Raises ClusterError."""
    try:
        _reach(os.environ.get("RAY_ADDRESS", ""))
        with _silent_stderr():
            _init(options)
    except Exception as error:
        address = os.environ.get("RAY_ADDRESS")
        logger.debug("ray.init", exc_info=True)
        what = f"The Ray cluster at {address} (RAY_ADDRESS) cannot be reached" if address else "Ray did not start here"
        raise ClusterError(f"{what}: {str(error).strip() or type(error).__name__}") from error


def _init(options: dict[str, Any]) -> None:
    """A machine that has much to do may not start Ray in the 30 seconds that Ray gives itself: then once more."""
    how = {**options, "log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(**how)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        ray.init(**how)


def _reach(address: str) -> None:
    """Ray itself would try for two minutes and say nothing. Raises OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


class _Interrupt:
    """A signal handler. Who stops a service may signal its process and then its group: within a second that is one."""

    def __init__(self) -> None:
        self._at = -math.inf

    def __call__(self, *_: object) -> None:
        now, before = time.monotonic(), self._at
        if now - before > 1:
            self._at = now
            raise KeyboardInterrupt


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """While Ray starts: its C++ side announces log settings there. What goes wrong is raised, not only printed."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_room(needed: dict[str, float]) -> None:
    """A machine never gets what it lacks; a cluster may still scale up, so there we only say what is waited for."""
    there = ray.cluster_resources()
    missing = {name: count for name, count in needed.items() if there.get(name, 0) < count}
    if not missing:
        return
    lack = ", ".join(f"{count:g} {name} (there are {there.get(name, 0):g})" for name, count in missing.items())
    if os.environ.get("RAY_ADDRESS"):
        logger.warning("waiting for the cluster to offer %s", lack)
        return
    raise SpecError(
        f"training.num_workers x training.resources_per_worker asks for {lack}. Ask for less, or set RAY_ADDRESS to a "
        "cluster that has them."
    )


def configure_data() -> None:
    """Ray Data keeps the log's order (shards then come out the same every time) and leaves the bars to us."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.use_disk_based_hash_shuffle = True  # a shuffle's size is then the disk's business, not the object store's
    context.shuffle_input_batch_bytes = SHUFFLE_BATCH_BYTES
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails there is raised too
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logger.debug("connected to Ray: %s", ray.cluster_resources())
