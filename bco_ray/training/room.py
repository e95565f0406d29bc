"""How many workers the cluster has room for now, and how its autoscaler hears that there would be more."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from bco_ray.telemetry import logger

Resources = dict[str, float]


def room_for(resources_per_worker: Resources) -> int:
    """How many more workers the cluster has place for now, node by node; not on nodes that are about to go."""
    needed = {name: count for name, count in resources_per_worker.items() if count > 0}
    leaving = ray._private.state.state.get_draining_nodes()
    free = ray._private.state.available_resources_per_node()
    return sum(_fitting(there, needed) for node, there in free.items() if node not in leaving)


def _fitting(there: dict[str, float], needed: Resources) -> int:
    return int(min(there.get(name, 0) // count for name, count in needed.items())) if needed else 0


class Places:
    """Places for workers that an elastic run does not have yet: a group asks for its own alone.

    Each is a placement group of its own. While it waits the autoscaler sees it; when it has a place, that is kept until
    the run grows into it. They end with the driver, and take nothing from others that a worker would not take. (Ray
    Train's way, its coordinator, sets aside what is asked for: another job's Ray Data ran one task at a time.)
    """

    def __init__(self, resources_per_worker: Resources) -> None:
        self._resources = {name: count for name, count in resources_per_worker.items() if count > 0}
        self._groups: list[PlacementGroup] = []

    def ask(self, workers: int) -> None:
        """For so many in all; what is more than that is given back."""
        try:
            while len(self._groups) > workers:
                remove_placement_group(self._groups[-1])
                self._groups.pop()
            while len(self._groups) < workers:
                self._groups.append(placement_group([self._resources]))
        except ray.exceptions.RayError as error:  # the cluster is in trouble, and whoever trains will say so
            logger.debug("asking for room for %d more workers: %s", workers, error)

    def held(self) -> int:
        """How many of them are there by now, on nodes that will stay."""
        leaving = ray._private.state.state.get_draining_nodes() if self._groups else {}
        tables = (placement_group_table(group) for group in self._groups)
        return sum(one["state"] == "CREATED" and one["bundles_to_node_id"][0] not in leaving for one in tables)
