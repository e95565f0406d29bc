"""A bare DeepSpeed script in a process of its own: `python training_deepspeed.py ORDER.json`.

The same micro-batches, model, DeepSpeed settings and BCO loss as our loop, and nothing else: micro-batches are made
before the clock starts, and no metrics, plan, checkpoint or Ray is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from training_meter import read_order, write_result

from bco_ray.models.loading import load_policy
from bco_ray.models.policy import Policy
from bco_ray.storage.scored import load_scored
from bco_ray.training import deepspeed_engine
from bco_ray.training.batches import MicroBatch, Share, window_batches
from bco_ray.training.deepspeed_config import deepspeed_config
from bco_ray.training.plan import Plan
from bco_ray.training.shard_reader import ShardReader

HALF_LIFE_ROWS = 512.0


def windows(order: dict[str, Any]) -> list[list[MicroBatch]]:
    """All micro-batches of all steps, on the device."""
    task, directory = order["task"], Path(order["task"]["scored"])
    reader = ShardReader(directory, load_scored(directory), cached_shards=1)
    share = Share(rank=0, workers=1, max_tokens=order["variant"]["micro_batch_tokens"])
    plans = Plan(reader.counts, task["window_rows"], epochs=1, seed=0).windows()
    device = torch.device(order["device"])
    return [[batch.to(device) for batch in window_batches(reader, plan, share).batches] for plan in plans]


def engine_of(order: dict[str, Any]) -> Any:
    """A DeepSpeed engine around the policy, with the settings our trainer gives it."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants to be told, even of one process
    backend = "nccl" if order["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed_engine.prepare_process(order["device"])
    import deepspeed

    bf16 = order["precision"] == "bf16"
    policy = Policy(load_policy(order["task"]["model"], None, dtype=torch.bfloat16 if bf16 else torch.float32))
    config = deepspeed_config(
        zero_stage=order["zero_stage"], bf16=bf16, learning_rate=order["learning_rate"], weight_decay=0.0,
        max_grad_norm=1.0,
    )  # fmt: skip
    engine, *_ = deepspeed.initialize(model=policy, config=config, model_parameters=list(policy.parameters()))
    return engine


def step(engine: Any, batches: list[MicroBatch], beta: float, delta: float) -> tuple[float, torch.Tensor]:
    """One update; the loss, and the mean reward of each class."""
    labels = torch.cat([batch.labels_B for batch in batches])
    counts = torch.stack([labels.sum(), (~labels).sum()])
    rewards = torch.zeros(2, device=labels.device)
    total = torch.zeros((), device=labels.device)
    for batch in batches:
        rewards_B = beta * (engine(batch.pack) - batch.reference_logps_B)
        losses_B = F.softplus(torch.where(batch.labels_B, delta - rewards_B, rewards_B - delta))
        sides = torch.stack([batch.labels_B, ~batch.labels_B]).float()
        loss = 0.5 * ((sides @ losses_B) / counts).sum()
        engine.backward(loss)
        rewards += sides @ rewards_B.detach()
        total += loss.detach()
    engine.step()
    return float(total), rewards / counts


def main(path: str) -> None:
    """All steps, each timed."""
    order = read_order(path)
    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    engine, todo = engine_of(order), windows(order)
    seconds, losses = [], []
    sums, weight = torch.zeros(2), 0.0
    for batches in todo:
        start = time.perf_counter()
        delta = float(sums.sum() / 2 / weight) if weight else 0.0
        loss, rewards = step(engine, batches, order["beta"], delta)
        decay = 0.5 ** (order["task"]["window_rows"] / HALF_LIFE_ROWS)
        sums, weight = decay * sums + rewards.cpu(), decay * weight + 1.0
        seconds.append(time.perf_counter() - start)
        losses.append(loss)
    write_result(order, {"seconds": seconds, "losses": losses})
    engine.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
