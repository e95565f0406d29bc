"""What a person hears who has no Ray."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bco_ray.errors import ClusterError
from bco_ray.pipeline import cluster


def test_a_cluster_that_is_not_there_is_an_error_of_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        ClusterError, match=rf"^The Ray cluster at {address} \(RAY_ADDRESS\) cannot be reached: .*refused"
    ):
        cluster._connect({})


def test_a_ray_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def fail(**_: object) -> None:
        raise RuntimeError("no space left on /tmp/ray")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(ClusterError, match="^Ray did not start here: no space left on /tmp/ray$"):
        cluster._connect({"address": "local"})


def test_a_slow_start_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    starts: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        starts.append(options)
        if len(starts) < 2:
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    cluster._connect({"address": "local"})
    assert [start["address"] for start in starts] == ["local", "local"]
