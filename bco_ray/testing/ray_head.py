"""A Ray head of a test's own: `ray start --head` on ports that nobody else has."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

STORE_BYTES = 90 << 20

OPTIONS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
           "ray-client-server-port", "node-manager-port", "object-manager-port", "runtime-env-agent-port")  # fmt: skip
VARIABLES = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""By these names `ray start` is told its ports; its own are the same for every cluster of a machine."""


def free_ports() -> dict[str, int]:
    """One for each of OPTIONS and VARIABLES, all different: they are held while they are looked for."""
    names = (*OPTIONS, *VARIABLES)
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return dict(zip(names, ports, strict=True))


def head_command(ports: dict[str, int], temporary: str, *more: str) -> list[str | Path]:
    """In the foreground, without room for work. `temporary`: a short path, for its sockets."""
    return [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0",
        f"--object-store-memory={STORE_BYTES}", f"--temp-dir={temporary}", "--dashboard-host=127.0.0.1",
        "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
        *(f"--{name}={ports[name]}" for name in OPTIONS), *more,
    ]  # fmt: skip


def head_environment(ports: dict[str, int]) -> dict[str, str]:
    """What the command takes from there. Ray gives a node half a minute to start: little, beside other tests."""
    return {**{name: str(ports[name]) for name in VARIABLES}, "RAY_raylet_start_wait_time_s": "120"}


def answers(port: int) -> bool:
    """Whether somebody listens there, on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
