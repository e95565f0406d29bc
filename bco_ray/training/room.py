"""How many workers the cluster has room for now, and how its autoscaler hears that there would be more."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator, ResourceRequestPriority

from bco_ray.telemetry import logger

Resources = dict[str, float]

RENEW_SECONDS = 20.0
FORGOTTEN_SECONDS = 180.0
"""A request that nobody renews for so long is no more: that of a driver that was killed. Ray Train's own figure."""


def room_for(resources_per_worker: Resources) -> int:
    """How many more workers the cluster has place for now, node by node; not on nodes that are about to go."""
    needed = {name: count for name, count in resources_per_worker.items() if count > 0}
    leaving = ray._private.state.state.get_draining_nodes()
    free = ray._private.state.available_resources_per_node()
    return sum(_fitting(there, needed) for node, there in free.items() if node not in leaving)


def _fitting(there: dict[str, float], needed: Resources) -> int:
    return int(min(there.get(name, 0) // count for name, count in needed.items())) if needed else 0


class MoreWorkers:
    """Asks for machines for the workers that an elastic run does not have yet: a group asks for its own alone.

    Through Ray's own coordinator, as Ray Train and Ray Data do: it adds up what everybody on the cluster asks for,
    where `ray.autoscaler.sdk.request_resources` knows one request per cluster, the last. It is internal to Ray 2.60;
    tests/faults/test_autoscaling.py would miss it.
    """

    def __init__(self, run: str, resources_per_worker: Resources, open_: Callable[[str], Any] | None = None) -> None:
        self._resources = {name: count for name, count in resources_per_worker.items() if count > 0}
        self._coordinator = (open_ or DefaultAutoscalingCoordinator)(f"bco-{run}-{uuid.uuid4().hex[:6]}")
        self._asked = 0
        self._renew_at = -math.inf

    def ask(self, workers: int) -> None:
        """For so many, until it is called again; 0 withdraws it. Cheap to call often: sent when it changes or ages."""
        if workers == self._asked and (workers == 0 or time.monotonic() < self._renew_at):
            return
        try:
            self._send(workers)
        except ray.exceptions.RayError as error:  # it would be forgotten anyway, or is asked again
            logger.debug("asking for room for %d more workers: %s", workers, error)
            return
        self._asked, self._renew_at = workers, time.monotonic() + RENEW_SECONDS

    def _send(self, workers: int) -> None:
        """Whoever needs room now comes first: this is for what may come."""
        if workers == 0:
            self._coordinator.cancel_request()
            return
        self._coordinator.request_resources(
            resources=[self._resources] * workers, expire_after_s=FORGOTTEN_SECONDS,
            priority=ResourceRequestPriority.LOW,
        )  # fmt: skip
