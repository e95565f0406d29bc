"""Room on a cluster, counted, and asked for; no cluster is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from bco_ray.training import room
from bco_ray.training.room import MoreWorkers


def test_room_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    much = {"CPU": 8.0, "GPU": 8.0}
    free = {"a": {"CPU": 3.0, "GPU": 2.0}, "b": {"CPU": 1.0, "GPU": 4.0}, "c": {"CPU": 8.0}, "going": much}
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"going": 0})
    assert room.room_for({"CPU": 2}) == 1 + 0 + 4
    assert room.room_for({"CPU": 1, "GPU": 1}) == 2 + 1
    assert room.room_for({"CPU": 4, "GPU": 1}) == 0


class Coordinator:
    """Ray's, as far as it is used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[Any] = []
        self.down = False

    def request_resources(self, *, resources: Any, **_: Any) -> None:
        self._hear(resources)

    def cancel_request(self) -> None:
        self._hear("withdrawn")

    def _hear(self, what: Any) -> None:
        if self.down:
            raise ray.exceptions.RayError("no head")
        self.heard.append(what)


@pytest.fixture
def more() -> MoreWorkers:
    return MoreWorkers("spot", {"CPU": 4, "GPU": 1, "TPU": 0}, Coordinator)


def test_it_is_asked_for_what_is_missing_and_not_for_what_is_known(more: MoreWorkers) -> None:
    for workers in (0, 2, 2, 1, 0, 0):
        more.ask(workers)
    worker = {"CPU": 4, "GPU": 1}
    assert more._coordinator.heard == [[worker] * 2, [worker], "withdrawn"]


def test_two_runs_of_one_name_do_not_take_each_others_place(more: MoreWorkers) -> None:
    assert MoreWorkers("spot", {}, Coordinator)._coordinator.name != more._coordinator.name


def test_a_request_is_renewed_before_it_is_forgotten(more: MoreWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    more.ask(1)
    now = room.time.monotonic()
    monkeypatch.setattr(room.time, "monotonic", lambda: now + room.RENEW_SECONDS)
    more.ask(1)
    assert len(more._coordinator.heard) == 2
    assert 3 * room.RENEW_SECONDS < room.FORGOTTEN_SECONDS


def test_what_was_not_heard_is_said_again(more: MoreWorkers) -> None:
    more._coordinator.down = True
    more.ask(1)
    more._coordinator.down = False
    more.ask(1)
    assert len(more._coordinator.heard) == 1


def test_rays_coordinator_takes_these_arguments() -> None:
    """A run asks by a name, at any time, and Ray sends nothing before it has an actor."""
    heard: list[Any] = []
    actor: Any = type("Actor", (), {})()
    actor.request_resources = type("Method", (), {"remote": lambda _, **said: heard.append(said)})()
    more = MoreWorkers("spot", {"CPU": 1}, lambda name: room.DefaultAutoscalingCoordinator(name, actor))
    more.ask(2)
    assert heard[0]["resources"] == [{"CPU": 1}] * 2
    assert heard[0]["requester_id"].startswith("bco-spot-")
