"""Our loop under Ray Train with one worker, in a process of its own: `python training_ray.py ORDER.json`."""

from __future__ import annotations

import sys
from typing import Any

from training_meter import read_order, write_result
from training_ours import fresh_directory, train_setup

from bco_ray.pipeline.cluster import cluster
from bco_ray.training.launch import run_training
from bco_ray.training.metrics import MetricsLog

STORE_BYTES = 200 << 20


def resources(order: dict[str, Any]) -> dict[str, float]:
    """Of the one worker."""
    return {"CPU": float(order["threads"])} | ({"GPU": 1.0} if order["device"] == "cuda" else {})


def main(path: str) -> None:
    """To the end of the plan; the seconds are the trainer's own."""
    order = read_order(path)
    run = fresh_directory(order)
    with cluster(workers=1, resources_per_worker=resources(order), object_store_bytes=STORE_BYTES):
        run_training(train_setup(order, run), num_workers=1, resources_per_worker=resources(order), max_failures=0)
    rows = MetricsLog(run / "metrics.jsonl").read()
    write_result(order, {"seconds": [row["seconds"] for row in rows], "losses": [row["loss"] for row in rows]})


if __name__ == "__main__":
    main(sys.argv[1])
