"""Trains setups one after another under torchrun: `stoppable.py KILL TERMINATE SETUP.json...`. No test.

After step KILL every worker is killed, after step TERMINATE the last one alone gets SIGTERM; -1: never.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from bco_ray.training.gang import current_gang
from bco_ray.training.loop import train
from bco_ray.training.setup import TrainSetup
from bco_ray.training.stopping import stop_on_sigterm


def disturb(step: int) -> None:
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == int(sys.argv[2]) and dist.get_rank() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    stop_on_sigterm()
    for path in sys.argv[3:]:
        train(TrainSetup.from_dict(json.loads(Path(path).read_text())), current_gang(), after_step=disturb)
    dist.destroy_process_group()
