"""Room on a cluster, counted, and asked for; no cluster is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from bco_ray.training import room
from bco_ray.training.room import Places


def test_room_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    much = {"CPU": 8.0, "GPU": 8.0}
    free = {"a": {"CPU": 3.0, "GPU": 2.0}, "b": {"CPU": 1.0, "GPU": 4.0}, "c": {"CPU": 8.0}, "going": much}
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"going": 0})
    assert room.room_for({"CPU": 2}) == 1 + 0 + 4
    assert room.room_for({"CPU": 1, "GPU": 1}) == 2 + 1
    assert room.room_for({"CPU": 4, "GPU": 1}) == 0


class Groups:
    """Ray's placement groups: `made` that are not removed, with their states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[int, str] = {}
        self.bundles: list[dict[str, float]] = []
        self.down = False
        monkeypatch.setattr(room, "placement_group", self.make)
        monkeypatch.setattr(room, "remove_placement_group", lambda group: self.made.pop(group))
        monkeypatch.setattr(room, "placement_group_table", self.table)
        monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"going": 0})

    def table(self, group: int) -> dict[str, Any]:
        state, _, node = self.made[group].partition(" on ")
        return {"state": state, "bundles_to_node_id": {0: node}}

    def make(self, bundles: list[dict[str, float]]) -> int:
        if self.down:
            raise ray.exceptions.RayError("no head")
        self.bundles += bundles
        self.made[len(self.bundles)] = "PENDING"
        return len(self.bundles)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(monkeypatch)


def test_one_place_is_asked_for_each_worker_and_given_back(groups: Groups) -> None:
    places = Places({"CPU": 4, "GPU": 1, "TPU": 0})
    for workers, made in ((0, 0), (3, 3), (3, 3), (1, 1), (2, 2), (0, 0), (0, 0)):
        places.ask(workers)
        assert len(groups.made) == made
    assert groups.bundles == [{"CPU": 4, "GPU": 1}] * 4


def test_what_has_come_is_counted(groups: Groups) -> None:
    places = Places({"CPU": 1})
    places.ask(3)
    assert places.held() == 0
    groups.made |= {1: "CREATED on a", 3: "CREATED on b"}
    assert places.held() == 2
    groups.made[3] = "CREATED on going"
    assert places.held() == 1
    groups.made[3] = "RESCHEDULING"  # the node is gone
    assert places.held() == 1


def test_a_cluster_in_trouble_is_asked_again_another_time(groups: Groups) -> None:
    places = Places({"CPU": 1})
    groups.down = True
    places.ask(1)
    groups.down = False
    places.ask(1)
    assert len(groups.made) == 1
