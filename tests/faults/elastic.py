"""An elastic training of one or two workers on a cluster that runs: `elastic.py SETUP.json ADDRESS`. No test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bco_ray.config.environment import prepare_environment

prepare_environment()

import ray  # noqa: E402

from bco_ray.training import launch  # noqa: E402
from bco_ray.training.setup import TrainSetup  # noqa: E402


def main(path: str, address: str) -> None:
    launch.RESIZE_SECONDS = 2.0
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    setup = TrainSetup.from_dict(json.loads(Path(path).read_text()))
    launch.run_training(setup, num_workers=(1, 2), resources_per_worker={"CPU": 1, "trainer": 1}, max_failures=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
