"""The whole server on a cluster of its own, until SIGTERM: `python whole_server.py STORAGE PORT TEMP`."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

from bco_ray.config.environment import prepare_environment

prepare_environment()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from bco_ray.service.app import build  # noqa: E402
from bco_ray.service.args import ServiceArgs  # noqa: E402
from bco_ray.serving.server import start_server  # noqa: E402


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def main(storage: Path, port: int, temporary: str) -> None:
    head = {
        "num_cpus": 4, "object_store_memory": 300_000_000, "temp_dir": temporary, "include_dashboard": True,
        "dashboard_host": "127.0.0.1", "dashboard_port": free_port(), "dashboard_agent_listen_port": free_port(),
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = start_server(ServiceArgs(follow=["bot"], storage=storage, poll_seconds=0.3), port=port, build=build)
    stop.wait()
    server.stop()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
