"""One worker of a gang, under torchrun: `scale_worker.py ORDER.json` writes `<result>-<rank>`; see `scale_inputs`."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from training_meter import StepsDone, read_order
from training_ours import train_setup

from bco_ray.training.gang import TorchGang
from bco_ray.training.loop import train

WIRE_BYTES = (64, 1208, 1 << 16, 1 << 20, 8 << 20)
TRIES = 15


def wire(gang: TorchGang) -> dict[str, float]:
    """Seconds of one sum by size, the smallest of many: others use the machine too."""
    return {str(size): min(_seconds(gang, size) for _ in range(TRIES)) for size in WIRE_BYTES}


def _seconds(gang: TorchGang, size: int) -> float:
    numbers = torch.zeros(size // 8, dtype=torch.float64)
    gang.barrier()
    start = time.perf_counter()
    gang.sum(numbers)
    return time.perf_counter() - start


def steps(order: dict[str, Any], gang: TorchGang, run: Path) -> list[float]:
    """CPU seconds of each step of this process, its batches included."""
    marks = [time.process_time()]

    def after_step(_: int) -> None:
        marks.append(time.process_time())
        if len(marks) > order["steps"]:
            raise StepsDone

    try:
        train(train_setup(order, run), gang, after_step=after_step)
    except StepsDone:
        return [after - before for before, after in pairwise(marks)]
    raise RuntimeError("the windows ended before the last step")


def main(path: str) -> None:
    """Train, time the wire, write both down."""
    order = read_order(path)
    dist.init_process_group("gloo")
    gang, run = TorchGang(), Path(order["scratch"])
    if gang.rank == 0:
        run.mkdir()
    gang.barrier()
    found: dict[str, Any] = {"cpu_seconds": steps(order, gang, run)}
    gang.barrier()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lm = transformers.AutoModelForCausalLM.from_pretrained(order["task"]["model"])
    found |= {"parameters": lm.num_parameters(), "metrics_row_bytes": max(map(len, lines)),
              "gloo_seconds_by_bytes": wire(gang)}  # fmt: skip
    Path(f"{order['result']}-{gang.rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
