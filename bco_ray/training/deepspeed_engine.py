"""The Engine on DeepSpeed ZeRO 1 and 2. The only file that imports deepspeed.

DeepSpeed's own accumulation is switched off (`managed_gradient_accumulation`): windows have a varying number of
micro-batches and their loss is already normalised, so every `step()` is one update.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from bco_ray.errors import TrainingError
from bco_ray.training.batches import MicroBatch
from bco_ray.training.engine import Schedule

_TAG = "zero"


def prepare_process(device: str) -> None:
    """Before the first use of DeepSpeed in a process: on a CPU, never compile its C++ helpers (minutes, needs g++)."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)


def deepspeed_config(
    *, zero_stage: int, bf16: bool, learning_rate: float, weight_decay: float, max_grad_norm: float
) -> dict[str, Any]:
    """The JSON DeepSpeed gets. `train_batch_size` is never set: with world size it says less and breaks more."""
    adam = {"lr": learning_rate, "weight_decay": weight_decay, "betas": [0.9, 0.999], "eps": 1e-8}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam | {"torch_adam": True}},
        "zero_optimization": {"stage": zero_stage, "contiguous_gradients": True, "overlap_comm": False},
        "bf16": {"enabled": bf16},
        "steps_per_print": 1_000_000_000,
    }


class DeepSpeedEngine:
    """See `bco_ray.training.engine.Engine`."""

    def __init__(self, policy: nn.Module, config: dict[str, Any], schedule: Schedule) -> None:
        import deepspeed

        trained = [p for p in policy.parameters() if p.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            config=config,
            model_parameters=trained,
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, schedule),
        )
        self._adapter_only = len(trained) < sum(1 for _ in policy.parameters())

    @property
    def device(self) -> torch.device:
        device: torch.device = torch.device(self._engine.device)
        return device

    @property
    def learning_rate(self) -> float:
        return float(self._engine.get_lr()[0])

    def forward(self, batch: MicroBatch) -> Tensor:
        logps_B: Tensor = self._engine(batch.input_ids_BT, batch.completion_mask_BT)
        return logps_B

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> float | None:
        """DeepSpeed checks the reduced gradients itself and skips the update when they are not finite."""
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return norm if math.isfinite(norm) else None

    def save(self, directory: Path) -> None:
        self._engine.save_checkpoint(str(directory), tag=_TAG, exclude_frozen_parameters=self._adapter_only)

    def load(self, directory: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG, load_module_strict=not self._adapter_only)
        if path is None:
            raise TrainingError(f"{directory}: DeepSpeed finds no checkpoint here.")

    def export_state(self) -> dict[str, Tensor]:
        return dict(self._engine.module.lm.state_dict())
