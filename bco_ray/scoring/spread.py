"""`Each` on Ray: a function applied to every shard by tasks of the cluster, results in shard order. Or by one task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from bco_ray.scoring.matching_passes import Each, in_process

T = TypeVar("T")

FEW_SHARDS = 8
SHARDS_PER_TASK = 4
MOST_IN_FLIGHT = 64


def in_a_task(function: Callable[..., T], *arguments: Any) -> T:
    """On a worker: the driver may be a laptop or the head node."""
    result: T = ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
    return result


def each_of(shards: Sequence[Path]) -> Each:
    """Few are read where the caller is."""
    return in_process if len(shards) <= FEW_SHARDS else on_ray


def on_ray(function: Callable[[Path], T], shards: Sequence[Path]) -> Iterator[T]:
    """Results in the order of `shards`. At most MOST_IN_FLIGHT tasks are waiting or unread, so the caller's memory and
    the object store hold few results however many shards there are.
    """
    task = ray.remote(num_cpus=1)(_apply)
    shared = ray.put(function)  # it may carry a fitted model: once for all tasks
    chunks = (list(shards[n : n + SHARDS_PER_TASK]) for n in range(0, len(shards), SHARDS_PER_TASK))
    running: deque[Any] = deque()
    for chunk in chunks:
        if len(running) >= _in_flight():
            yield from ray.get(running.popleft())
        running.append(task.remote(shared, chunk))
    while running:
        yield from ray.get(running.popleft())


def _apply(function: Callable[[Path], T], shards: Sequence[Path]) -> list[T]:
    return [function(shard) for shard in shards]


def _in_flight() -> int:
    return min(MOST_IN_FLIGHT, 2 + int(ray.cluster_resources().get("CPU", 1)))
