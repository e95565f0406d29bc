"""The Engine on DeepSpeed ZeRO 1 to 3. The only file that imports deepspeed.

DeepSpeed's own accumulation is switched off (`managed_gradient_accumulation`): windows have a varying number of
micro-batches and their loss is already normalised, so every `step()` is one update. Its schedulers are not used either:
they stand still when a step is skipped, and ours counts attempts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bco_ray.models.loading import partitioned
from bco_ray.models.packing import Pack
from bco_ray.models.policy import Policy
from bco_ray.training import deepspeed_state
from bco_ray.training.deepspeed_config import deepspeed_config, frozen_config
from bco_ray.training.engine import Schedule
from bco_ray.training.fragments import Fragment, SavedState

__all__ = ["DeepSpeedEngine", "deepspeed_config", "frozen_engine", "prepare_process", "sharded_loading"]


def prepare_process(device: str) -> None:
    """Before the first use of DeepSpeed in a process: on a CPU, never compile its C++ helpers (minutes, needs g++)."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)


def sharded_loading(config: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Inside it models are built in shares, if `config` says stage 3; after `prepare_process`. Collective.

    DeepSpeed would also exchange `torch.nn.functional.linear` for one that rounds differently; see `_shares_only`.
    """
    zero = config["zero_optimization"]
    if zero["stage"] < 3:
        return nullcontext()
    return partitioned({**config, "zero_optimization": {**zero, "memory_efficient_linear": False}})


class DeepSpeedEngine:
    """See `bco_ray.training.engine.Engine`."""

    def __init__(self, policy: Policy, config: Mapping[str, Any], schedule: Schedule) -> None:
        trained = [p for p in policy.parameters() if p.requires_grad]
        self._stage = config["zero_optimization"]["stage"]
        self._engine = _initialize(policy, config, model_parameters=trained)
        self._adapter_only = len(trained) < sum(1 for _ in policy.parameters())
        self._base_rates = [float(group["lr"]) for group in self._engine.optimizer.param_groups]
        self._schedule = schedule
        self._steps = 0

    @property
    def device(self) -> torch.device:
        device: torch.device = torch.device(self._engine.device)
        return device

    @property
    def learning_rate(self) -> float:
        return self._base_rates[0] * self._schedule(self._steps)

    def forward(self, pack: Pack) -> Tensor:
        with _shares_only(self._stage):
            logps_B: Tensor = self._engine(pack)
        return logps_B

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> Tensor:
        """DeepSpeed looks at the reduced gradients itself and skips the update when they are not finite."""
        for group, rate in zip(self._engine.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._schedule(self._steps)
        self._engine.step()
        self._steps += 1
        norm = self._engine.get_global_grad_norm() if self._engine.was_step_applied() else math.nan
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    @property
    def layout(self) -> str:
        return f"zero-{self._stage}/{self._engine.dp_world_size}"

    def fragments(self) -> list[Fragment]:
        return deepspeed_state.fragments(self._engine, self._stage)

    def restore(self, saved: SavedState, steps: int) -> None:
        deepspeed_state.restore(self._engine, self._stage, saved)
        self._steps = steps

    def settle(self) -> None:
        deepspeed_state.settle(self._engine, self._stage)

    def export_state(self) -> dict[str, Tensor]:
        lm = self._engine.module.lm
        if self._stage < 3:
            return dict(lm.state_dict())
        return _gathered(lm, trained_only=self._adapter_only)

    def close(self) -> None:
        self._engine.destroy()


def frozen_engine(policy: Policy, config: Mapping[str, Any]) -> Callable[[Pack], Tensor]:
    """`policy` for comparison, its parameters shared out as `config` (of stage 3) says: a pack -> logps_B, no gradient.

    Collective, and so is every call.
    """
    engine = _initialize(policy.requires_grad_(False), frozen_config(config))

    @torch.no_grad()
    def forward(pack: Pack) -> Tensor:
        logps_B: Tensor = engine(pack)
        return logps_B

    return forward


def _initialize(policy: Policy, config: Mapping[str, Any], **trained: Any) -> Any:
    """Under stage 3 the policy itself reads its head's weights, which DeepSpeed must be told to gather for it."""
    import deepspeed

    if config["zero_optimization"]["stage"] == 3:
        for parameter in policy.head.parameters():
            deepspeed.zero.register_external_parameter(policy, parameter)
    engine, *_ = deepspeed.initialize(model=policy, config=dict(config), **trained)
    return engine


@dataclass(frozen=True)
class _View:
    """Which part of a parameter autograd asked to keep."""

    parameter: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def _shares_only(stage: int) -> Iterator[None]:
    """Under stage 3, autograd keeps references to parameters, not views (a linear layer's transpose) of gathered ones.

    A view would hold the whole parameter in memory until its backward; then DeepSpeed gathers it anyway.
    """
    with torch.autograd.graph.saved_tensors_hooks(_keep, _view_again) if stage == 3 else nullcontext():
        yield


def _keep(tensor: Tensor) -> Tensor | _View:
    base = tensor._base
    if not isinstance(base, nn.Parameter) or not hasattr(base, "ds_id"):
        return tensor
    offset = int(tensor.storage_offset() - base.storage_offset())
    return _View(base, tensor.size(), tensor.stride(), offset)


def _view_again(kept: Tensor | _View) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    whole = kept.parameter.detach()
    return whole.as_strided(kept.size, kept.stride, whole.storage_offset() + kept.offset)


def _gathered(lm: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """A state dict of whole parameters in host memory on worker 0, empty elsewhere. Collective, one by one."""
    import deepspeed

    parameters = dict(lm.named_parameters(remove_duplicate=False))
    state = {name: tensor for name, tensor in lm.state_dict().items() if name not in parameters}
    seen: dict[int, Tensor] = {}
    for name, parameter in parameters.items():
        if trained_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            if deepspeed.comm.get_rank() == 0:  # tied weights stay one tensor
                state[name] = seen.setdefault(id(parameter), parameter.detach().to("cpu", copy=True))
    return state
