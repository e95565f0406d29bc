"""Training without Ray, for one machine and for measuring: `torchrun ... -m bco_ray.training.alone SETUP.json`.

`SETUP.json` is a `TrainSetup` as JSON. Run plainly (no torchrun) it trains in one process. SIGTERM, or a `stop.json` in
the run's directory, makes a checkpoint and ends it cleanly; the same command goes on from there.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bco_ray.telemetry import configure_logging, logger
from bco_ray.training import stopping
from bco_ray.training.gang import current_gang
from bco_ray.training.loop import StepHook, train
from bco_ray.training.setup import TrainSetup
from bco_ray.training.watchdog import collective_seconds


def main(arguments: list[str], *, after_step: StepHook | None = None) -> None:
    """Train what the JSON file names."""
    configure_logging()
    stopping.stop_on_sigterm()
    setup = TrainSetup.from_dict(json.loads(Path(arguments[0]).read_text()))
    if os.environ.get("RANK", "0") == "0":
        stopping.withdraw(Path(setup.run))
    if setup.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        timeout = timedelta(seconds=collective_seconds(setup.hang_seconds))
        dist.init_process_group("nccl" if setup.device == "cuda" else "gloo", timeout=timeout)
    try:
        outcome = train(setup, current_gang(), after_step=after_step)
        if outcome.stopped:
            logger.info("stopped after step %d; the same command goes on from there", outcome.state.next_step - 1)
    finally:
        if "RANK" in os.environ:
            dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
