"""An elastic training on several nodes of one machine that come and go: `nodes.py SETUP.json kill|drain`. No test.

A head without room for workers and two nodes with room for one each. Once there are checkpoints one node is killed, or
its end is announced as a cloud does; when training goes on alone, another comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bco_ray.config.environment import prepare_environment

os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
os.environ |= {f"RAY_health_check_{name}": value for name, value in
               {"initial_delay_ms": "1000", "period_ms": "1000", "failure_threshold": "3"}.items()}  # fmt: skip
prepare_environment()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from bco_ray.storage.run_journal import Event, RunJournal  # noqa: E402
from bco_ray.training import launch  # noqa: E402
from bco_ray.training.setup import TrainSetup  # noqa: E402

WAIT_SECONDS = 120
NODE = {"num_cpus": 1, "resources": {"trainer": 1}, "object_store_memory": 90 << 20}


def main(path: str, how: str) -> None:
    setup = TrainSetup.from_dict(json.loads(Path(path).read_text()))
    journal = RunJournal(Path(setup.run))
    launch.RESIZE_SECONDS = 2.0
    with tempfile.TemporaryDirectory(prefix="bco-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        head = {"num_cpus": 2, "object_store_memory": 90 << 20, "temp_dir": directory, "include_dashboard": False}
        Path("/tmp/ray").mkdir(exist_ok=True)  # where it writes down its address
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            first, _ = cluster.add_node(**NODE), cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            training = in_thread(setup)
            wait_for(lambda: any(e["event"] == "checkpoint" and e["step"] >= 20 for e in journal.read()), training)
            take_away(cluster, first, how)
            wait_for(lambda: sizes(journal.read())[-1:] == [1], training)
            cluster.add_node(**NODE)
            training.join(WAIT_SECONDS)
        finally:
            ray.shutdown()
            cluster.shutdown()


def take_away(cluster: Cluster, node: Any, how: str) -> None:
    if how == "kill":
        cluster.remove_node(node, allow_graceful=False)
        return
    with metadata_server() as endpoint:
        command = [Path(sys.executable).with_name("bco"), "node", "watch", "--node-id", node.node_id]
        environment = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint, "GCE_METADATA_HOST": "127.0.0.1:9"}
        subprocess.run(command, check=True, timeout=WAIT_SECONDS, capture_output=True, env=environment)


@contextmanager
def metadata_server() -> Iterator[str]:
    """Its URL. It says that the machine will be gone in 40 seconds, some of which the command takes to start."""
    at = datetime.now(UTC) + timedelta(seconds=40)
    notice = json.dumps({"action": "terminate", "time": at.isoformat(timespec="seconds")}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(b"token")

        def do_GET(self) -> None:
            self.answer(notice)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def sizes(events: list[Event]) -> list[int]:
    """Workers of each attempt, from when it is about to start: what comes then is there before its steps are done."""
    return [event["workers"] for event in events if event["event"] == "attempt"]


def in_thread(setup: TrainSetup) -> threading.Thread:
    """Nodes can only be started in the main thread."""
    arguments: dict[str, Any] = {"resources_per_worker": {"CPU": 1, "trainer": 1}, "max_failures": 2}
    run = lambda: launch.run_training(setup, num_workers=(1, 2), **arguments)  # noqa: E731
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def wait_for(there: Callable[[], bool], training: threading.Thread) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not there():
        if time.monotonic() > deadline or not training.is_alive():
            raise SystemExit(f"not in {WAIT_SECONDS} s, or training is over")
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
