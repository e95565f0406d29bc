"""Trains setups one after another under torchrun, with a kill switch: SIGKILL itself after a given step. No test."""

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from bco_ray.training.gang import current_gang
from bco_ray.training.loop import train
from bco_ray.training.setup import TrainSetup


def kill_after(step: int) -> None:
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for path in sys.argv[2:]:
        train(TrainSetup.from_dict(json.loads(Path(path).read_text())), current_gang(), after_step=kill_after)
    dist.destroy_process_group()
