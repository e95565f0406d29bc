"""What a phase on Ray Data waits for. Ray says nothing while a cluster starts machines, nor if it can get none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated import autoscaler_pb2

from bco_ray.telemetry import logger

LOOK_SECONDS = 2.0

Resources = Mapping[str, float]


@contextmanager
def looking_out(told: Callable[[str | None], None], unmet: Callable[[], str | None] | None = None) -> Iterator[None]:
    """While the body runs, `told` hears every LOOK_SECONDS what the cluster lacks (see `unmet_demand`)."""
    ask, done = unmet or unmet_demand, threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            try:
                told(ask())
            except (ray.exceptions.RayError, RuntimeError) as error:  # it cannot be asked just now
                logger.debug("looking for what the cluster lacks: %s", error)

    thread = threading.Thread(target=look, daemon=True, name="waiting")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def unmet_demand() -> str | None:
    """What Ray was asked for and no machine that runs could hold, were it idle: `a machine with 1 CPU, 1 GPU`."""
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    state = get_cluster_resource_state(client)
    dead = autoscaler_pb2.NodeStatus.DEAD
    machines = [dict(node.total_resources) for node in state.node_states if node.status != dead]
    wanted = [dict(one.request.resources_bundle) for one in state.pending_resource_requests]
    wanted += [dict(one.resources_bundle) for gang in state.pending_gang_resource_requests for one in gang.requests]
    return words_for(wanted, machines)


def words_for(wanted: list[dict[str, float]], machines: list[dict[str, float]]) -> str | None:
    """Of the first demand that fits no machine; None: each fits one."""
    lacking = (one for one in wanted if not any(_fits(one, machine) for machine in machines))
    found = next(lacking, None)
    if found is None:
        return None
    return f"a machine with {', '.join(f'{count:g} {name}' for name, count in sorted(found.items())) or 'any room'}"


def _fits(demand: Resources, machine: Resources) -> bool:
    return all(machine.get(name, 0) >= count for name, count in demand.items())
