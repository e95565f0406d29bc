"""A log is scored on a head and two nodes, one of which is killed meanwhile: `scorer.py SPEC.yaml`. No test."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from bco_ray.config.environment import prepare_environment

os.environ |= {f"RAY_health_check_{name}": value for name, value in
               {"initial_delay_ms": "1000", "period_ms": "1000", "failure_threshold": "3"}.items()}  # fmt: skip
prepare_environment()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from bco_ray.config import load_spec  # noqa: E402
from bco_ray.pipeline.cluster import configure_data  # noqa: E402
from bco_ray.pipeline.resolve import resolve  # noqa: E402
from bco_ray.pipeline.resolved import ResolvedJob  # noqa: E402
from bco_ray.pipeline.run import score_job  # noqa: E402
from bco_ray.telemetry import Phases  # noqa: E402

WAIT_SECONDS = 240
STORE = 150 << 20


def main(path: str) -> None:
    job = resolve(load_spec(path))
    with tempfile.TemporaryDirectory(prefix="bco-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        head = {"num_cpus": 1, "object_store_memory": STORE, "temp_dir": directory, "include_dashboard": False}
        Path("/tmp/ray").mkdir(exist_ok=True)  # where it writes down its address
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            victim, _ = (cluster.add_node(num_cpus=2, object_store_memory=STORE) for _ in range(2))
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            configure_data()
            scoring = threading.Thread(target=score_job, args=(job, Phases(quiet=True)), daemon=True)
            scoring.start()
            wait_for_marks(job, scoring)
            cluster.remove_node(victim, allow_graceful=False)
            scoring.join(WAIT_SECONDS)
        finally:
            ray.shutdown()
            cluster.shutdown()


def wait_for_marks(job: ResolvedJob, scoring: threading.Thread) -> None:
    """Until some parts are finished, and others are not."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not list((job.scored_directory / "reference").glob("part-*.json")):
        if time.monotonic() > deadline or not scoring.is_alive():
            raise SystemExit("no part was finished in time")
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1])
