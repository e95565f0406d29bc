"""Telling Ray that a node will go: nothing new is put there, and trainings hear of it (`training.launch`).

By Ray's own command in a process of its own: what waits for a notice stays small, and a GCS that does not answer ends
that process alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bco_ray.errors import ClusterError

COMMAND_SECONDS = 20.0
"""For a command that takes three; Ray itself would wait a minute for a head that is gone."""


@dataclass(frozen=True)
class Node:
    """A raylet on this machine: its process, Ray's name for the node, and where its cluster's head is."""

    pid: int
    id: str
    address: str


def node_here(node_id: str | None = None) -> Node:
    """The one whose raylet runs on this machine (several: that of this id). Raises ClusterError."""
    found = [node for node in _nodes() if node_id in {None, node.id}]
    if not found:
        which = f"node {node_id}" if node_id else "Ray node"
        raise ClusterError(f"no {which} runs on this machine.")
    if len(found) > 1:
        raise ClusterError(f"{len(found)} Ray nodes run on this machine: name one with --node-id.")
    return found[0]


def drain(node: Node, because: str, seconds: float) -> None:
    """Raises ClusterError if Ray has not heard it, or refuses."""
    command = [
        str(Path(sys.executable).with_name("ray")), "drain-node", "--address", node.address, "--node-id", node.id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", because,
        "--deadline-remaining-seconds", str(max(0, int(seconds))),
    ]  # fmt: skip
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"ray drain-node: no answer from {node.address} in {COMMAND_SECONDS:.0f} s") from error
    if ended.returncode != 0:
        said = (ended.stderr or ended.stdout).strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ClusterError(f"ray drain-node: {said[-1]}")


def runs(node: Node) -> bool:
    """Whether its raylet is still there: one that drains ends when nothing runs on it any more."""
    return any(one.pid == node.pid for one in _nodes())


def _nodes() -> Iterator[Node]:
    """By the command lines of processes: a cluster need not be asked who is here."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if words[0].endswith(b"/raylet"):
            said = dict(word.decode(errors="replace").partition("=")[::2] for word in words[1:])
            if "--node_id" in said and "--gcs-address" in said:
                yield Node(int(entry.name), said["--node_id"], said["--gcs-address"])
