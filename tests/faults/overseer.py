"""Looks after the jobs of a storage, as the server does, until it is killed: `overseer.py STORAGE ADDRESS`. No test.

Whenever the number of the cluster's worker nodes has changed, a line of `<storage>/nodes` has the new one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bco_ray.config.environment import prepare_environment

prepare_environment()

import ray  # noqa: E402

from bco_ray.control.jobs import JobStore  # noqa: E402
from bco_ray.control.ray_jobs import RayJobs  # noqa: E402
from bco_ray.control.reconciler import Reconciler  # noqa: E402
from bco_ray.storage.database import open_database  # noqa: E402


def main(storage: Path, address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    reconciler = Reconciler(JobStore(open_database(storage)), RayJobs(storage), storage)
    told = -1
    while True:
        reconciler.run_once()
        if (nodes := workers()) != told:
            told = nodes
            with (storage / "nodes").open("a") as file:
                file.write(f"{nodes}\n")
        time.sleep(0.3)


def workers() -> int:
    return sum(node["Alive"] and "node:__internal_head__" not in node["Resources"] for node in ray.nodes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
