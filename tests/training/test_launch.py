"""What Ray says of a failed group, in its own words; no cluster is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import ray.train
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from bco_ray.training import launch
from bco_ray.training.failures import cause_of

EXIT = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n"
    "The actor is dead because its worker process has died. Worker exit type: {type} Worker exit detail: {detail} "
    "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
)
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: boom\n'


class WrappedError(Exception):
    """As Ray wraps what a worker raised: its text is the traceback."""


def cause(**failures: Any) -> Any:
    error = ray.train.WorkerGroupError("", {int(rank[1:]): failure for rank, failure in failures.items()})
    return cause_of(launch._symptoms(error))


def died(kind: str = "SYSTEM_ERROR", detail: str = "Worker unexpectedly exits with code 2. End of file.") -> Exception:
    return WrappedError(EXIT.format(type=kind, detail=detail))


def test_a_process_that_is_gone_is_told_without_guesses() -> None:
    found = cause(r1=died(), r0=RuntimeError("[gloo] Connection closed by peer"))
    assert found.kind == "lost"
    assert found.message == (
        "worker 1: its process is gone: SYSTEM_ERROR, Worker unexpectedly exits with code 2. End of file"
    )


def test_a_worker_that_could_not_be_asked_is_gone_too() -> None:
    """Of a node that was killed Ray may know no more, on a busy machine, than that the actor does not answer."""
    away = ray.exceptions.ActorUnavailableError("The actor is unavailable: RpcError", b"\0" * 16)
    found = cause(r0=WorkerHealthCheckFailedError("A worker health check failed.", away))
    assert found.kind == "lost"
    assert found.message.startswith("worker 0: its process is gone: The actor ")


def test_what_rays_memory_monitor_ended_was_short_of_memory() -> None:
    assert cause(r0=died("NODE_OUT_OF_MEMORY", "Task was killed due to the node running low on memory.")).kind == (
        "out_of_memory"
    )


def test_what_a_worker_raised_is_found_in_its_traceback() -> None:
    found = cause(r0=RuntimeError("gloo: Connection closed by peer"), r1=WrappedError(TRACEBACK))
    assert (found.kind, found.message) == ("error", "worker 1: ValueError: boom")


@pytest.mark.parametrize(("name", "kind"), [("WorkerGroupStartupTimeoutError", "no_room"), ("OtherError", "lost")])
def test_what_the_controller_says(name: str, kind: str) -> None:
    failure = type(name, (Exception,), {})("two workers")
    assert cause_of(launch._symptoms(ray.train.ControllerError(failure))).kind == kind
