"""Our side in a process of its own, without Ray: `python training_ours.py ORDER.json`.

The loop is the one every run takes; only its hook is used. It is left after the last measured step, so that no
checkpoint and no export is counted.
"""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from training_meter import Meter, StepsDone, read_order, write_result

import bco_ray
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

NEVER = 1_000_000_000


def train_setup(order: dict[str, Any], run: Path) -> TrainSetup:
    """The order as our trainer takes it."""
    task = order["task"]
    return TrainSetup(
        scored=task["scored"],
        model=task["model"],
        run=str(run),
        adapter=None,
        objective=Objective(beta=order["beta"], desirable_weight=0.5, undesirable_weight=0.5),
        half_life_rows=512.0,
        learning_rate=order["learning_rate"],
        lr_scheduler="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        epochs=1,
        rows_per_step=task["window_rows"],
        max_tokens_per_micro_batch=order["variant"]["micro_batch_tokens"],
        zero_stage=order["zero_stage"],
        bf16=order["precision"] == "bf16",
        device=order["device"],
        checkpoint_every=NEVER,
        checkpoint_keep=1,
        seed=0,
        threads=order["threads"],
    )


def load_once(model: str, meter: Meter) -> None:
    """What the model alone takes, in float32 as on TRL's side; then it goes again."""
    lm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    meter.loaded()
    del lm
    gc.collect()


def fresh_directory(order: dict[str, Any]) -> Path:
    """A run directory without checkpoints to go on from."""
    run = Path(order["scratch"]) / "ours"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    return run


def first_step(run: Path) -> dict[str, Any]:
    """The metrics of step 0: before any update, so policy and reference are the same function."""
    row = MetricsLog(run / "metrics.jsonl").read()[0]
    names = ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")
    return {"first_loss": row["loss"], "first_means": {name: row[name] for name in names}}


def main(path: str) -> None:
    """Load, train, write the result."""
    order = read_order(path)
    meter = Meter(steps=order["steps"], threads=order["threads"], device=order["device"])
    load_once(order["task"]["model"], meter)
    run = fresh_directory(order)

    def after_step(_: int) -> None:
        meter.step()
        if meter.done == meter.steps:
            raise StepsDone

    try:
        train(train_setup(order, run), SoloGang(), after_step=after_step)
    except StepsDone:
        versions = {"bco_ray": bco_ray.__version__, "transformers": transformers.__version__}
        result = meter.figures() | first_step(run)
        write_result(order, result | {"versions": versions | {"torch": torch.__version__}})


if __name__ == "__main__":
    main(sys.argv[1])
