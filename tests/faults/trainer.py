"""One worker of a training without Ray, met through a file: `trainer.py SETUP.json RANK WORKERS STORE`. No test."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from bco_ray.training import stopping
from bco_ray.training.gang import TorchGang
from bco_ray.training.loop import train
from bco_ray.training.setup import TrainSetup

if __name__ == "__main__":
    path, rank, workers, store = sys.argv[1:]
    os.environ |= {"LOCAL_RANK": rank, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    stopping.stop_on_sigterm()
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(workers), timeout=timedelta(seconds=60)
    )
    train(TrainSetup.from_dict(json.loads(Path(path).read_text())), TorchGang())
