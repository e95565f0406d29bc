"""The whole server on a cluster of its own, until SIGTERM: `python whole_server.py STORAGE PORT TEMP [MORE]`.

MORE: further arguments of the server as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from bco_ray.config.environment import prepare_environment

# `Cluster` leaves a file in the first whatever temp_dir it is told. At Ray's own 15 workers wait for all else.
os.environ |= {"RAY_TMPDIR": sys.argv[3], "RAY_worker_niceness": "0"}
prepare_environment()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from bco_ray.service.app import build  # noqa: E402
from bco_ray.service.args import ServiceArgs  # noqa: E402
from bco_ray.serving.server import start_server  # noqa: E402


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def main(storage: Path, port: int, more: dict[str, Any]) -> None:
    head = {
        "num_cpus": 8, "object_store_memory": 300_000_000, "include_dashboard": True,
        "dashboard_host": "127.0.0.1", "dashboard_port": free_port(), "dashboard_agent_listen_port": free_port(),
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)  # it outlives a killed server
    try:
        serve(storage, port, cluster.address, more)
    finally:
        cluster.shutdown()


def serve(storage: Path, port: int, address: str, more: dict[str, Any]) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    args = ServiceArgs(follow=["bot"], storage=storage, poll_seconds=0.3, **more)
    server = start_server(args, port=port, build=build)
    stop.wait()
    server.stop()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
