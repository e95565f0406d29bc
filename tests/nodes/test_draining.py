"""Which node is here, and what Ray is told; the command is real, Ray is not (tests/faults/test_nodes.py has it)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bco_ray.errors import ClusterError
from bco_ray.nodes import draining
from bco_ray.nodes.draining import Node, drain, node_here, runs

NODE = Node(os.getpid(), "ab" * 28, "10.0.0.1:6379")


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts processes that look like one."""
    started: list[subprocess.Popen[bytes]] = []

    def start(node_id: str) -> subprocess.Popen[bytes]:
        code = "import time; time.sleep(600)"
        words = ["/elsewhere/raylet", "-c", code, f"--node_id={node_id}", "--gcs-address=10.0.0.1:6379", "--head"]
        started.append(subprocess.Popen(words, executable=sys.executable))
        deadline = time.monotonic() + 30
        while not any(node.pid == started[-1].pid for node in draining._nodes()):  # it has yet to become that program
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_node_is_known_by_its_raylet(raylet: Callable[[str], subprocess.Popen[bytes]]) -> None:
    first, second = raylet("f1" * 28), raylet("f2" * 28)
    assert node_here("f1" * 28) == Node(first.pid, "f1" * 28, "10.0.0.1:6379")
    with pytest.raises(ClusterError, match="Ray nodes run on this machine: name one with --node-id"):
        node_here()
    node = node_here("f2" * 28)
    assert runs(node)
    second.kill()
    second.wait()
    assert not runs(node)
    with pytest.raises(ClusterError, match="no node f2f2"):
        node_here("f2" * 28)


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command of that name, and where it writes what it was called with."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path / "ray"


def says(command: Path, code: str) -> None:
    command.write_text(f"#!/bin/sh\n{code}\n")
    command.chmod(0o755)


def test_ray_is_told_why_and_how_long(ray: Path, tmp_path: Path) -> None:
    says(ray, f'printf "%s\\n" "$@" > {tmp_path / "words"}')
    drain(NODE, "EC2 will terminate it", 117.9)
    assert (tmp_path / "words").read_text().splitlines() == [
        "drain-node", "--address", "10.0.0.1:6379", "--node-id", "ab" * 28, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "EC2 will terminate it", "--deadline-remaining-seconds", "117",
    ]  # fmt: skip


def test_what_ray_refuses_is_an_error_in_its_words(ray: Path) -> None:
    says(ray, "echo warning >&2; echo 'Error: The drain request is not accepted' >&2; exit 1")
    with pytest.raises(ClusterError, match="^ray drain-node: Error: The drain request is not accepted$"):
        drain(NODE, "it goes", 5)


def test_a_head_that_does_not_answer_is_an_error(ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "COMMAND_SECONDS", 0.2)
    says(ray, "exec sleep 30")
    with pytest.raises(ClusterError, match="no answer from 10.0.0.1:6379"):
        drain(NODE, "it goes", 5)


def test_ray_has_this_command_with_these_options() -> None:
    """It is hidden, and no public promise of Ray's."""
    from ray.scripts.scripts import drain_node

    options = {option for parameter in drain_node.params for option in parameter.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= options
