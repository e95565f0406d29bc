"""Training on Ray Train: one TorchTrainer around `loop.train`. The only file here that imports ray.

Checkpoints are ours, on shared storage, so a worker group that Ray restarts finds the newest one by itself and nothing
depends on when Ray's controller last polled. The result travels as the train function's return value.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from bco_ray.errors import BcoError, TrainingError
from bco_ray.telemetry import configure_logging
from bco_ray.training.setup import TrainSetup


def run_training(
    setup: TrainSetup, *, num_workers: int, resources_per_worker: dict[str, float], max_failures: int
) -> dict[str, Any]:
    """Train on the connected cluster; blocks until the model is in `<run>/model`. Returns the final loop state.

    Raises TrainingError with the workers' own words if training failed for good.
    """
    trainer = TorchTrainer(
        _worker,
        train_loop_config=setup.as_dict(),
        torch_config=TorchConfig(backend="nccl" if resources_per_worker.get("GPU") else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=bool(resources_per_worker.get("GPU")),
            resources_per_worker=resources_per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{int(time.time())}-{uuid.uuid4().hex[:6]}",
            storage_path=str(Path(setup.run).resolve() / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            worker_runtime_env={"env_vars": _worker_environment(setup, resources_per_worker)},
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"training failed on the workers: {_root_cause(error)}") from error
    outcome: dict[str, Any] = result.return_value
    if "fatal" in outcome:
        raise TrainingError(outcome["fatal"])
    return outcome


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """On each worker. An error of ours would come back on every retry: it is returned, not raised."""
    from bco_ray.training.gang import TorchGang
    from bco_ray.training.loop import train

    configure_logging()
    if config["device"] == "cuda":
        torch.cuda.set_device(ray.train.torch.get_device())
    try:
        state = train(TrainSetup.from_dict(config), TorchGang()).state
    except BcoError as error:
        return {"fatal": str(error)}
    return state.as_json()


def _worker_environment(setup: TrainSetup, resources: dict[str, float]) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
    return environment if resources.get("GPU") else {**environment, "DS_ACCELERATOR": "cpu"}


def _root_cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(first).__name__
