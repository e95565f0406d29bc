"""The optimizer behind one small interface: plain torch here, DeepSpeed in `deepspeed_engine`.

Both average gradients over the gang, so a caller that wants the gradient of a sum over all workers multiplies its loss
by the gang's size; both clip by the global norm and leave everything untouched when a gradient is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bco_ray.training.batches import MicroBatch
from bco_ray.training.gang import Gang

Schedule = Callable[[int], float]
"""Optimizer steps done so far -> factor on the learning rate."""


class Engine(Protocol):
    """What the training step needs."""

    def forward(self, batch: MicroBatch) -> Tensor:
        """Sequence log-probabilities (B,), float32, with gradient."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar."""

    def step(self) -> float | None:
        """Average, clip, update. The gradient norm before clipping; None: not finite, and nothing was updated."""

    @property
    def learning_rate(self) -> float:
        """The rate the next step uses."""

    @property
    def device(self) -> torch.device:
        """Where batches must be."""

    def save(self, directory: Path) -> None:
        """Write this worker's part of weights and optimizer state; `directory` exists and is shared by all workers."""

    def load(self, directory: Path) -> None:
        """The inverse of `save`."""

    def export_state(self) -> dict[str, Tensor]:
        """What `save_pretrained` needs: the wrapped LM's state dict."""


def warmup_schedule(kind: str, *, total_steps: int, warmup_ratio: float) -> Schedule:
    """Linear warm-up over the first `warmup_ratio` of the steps, then constant or linear to zero.

    The first step already learns: its factor is 1/warm-up steps, not 0.
    """
    warmup = math.ceil(total_steps * warmup_ratio)

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        if kind == "constant":
            return 1.0
        return max(0.0, (total_steps - done) / max(1, total_steps - warmup))

    return factor


class TorchEngine:
    """AdamW in plain torch, whole state on every worker; gradients are averaged by one all-reduce per step (ZeRO 0)."""

    def __init__(
        self,
        policy: nn.Module,
        gang: Gang,
        *,
        learning_rate: float,
        weight_decay: float,
        max_grad_norm: float,
        schedule: Schedule,
        device: torch.device | None = None,
    ) -> None:
        self.policy = policy.to(device or torch.device("cpu"))
        self._gang = gang
        self._names = [name for name, p in policy.named_parameters() if p.requires_grad]
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        self._max_grad_norm = max_grad_norm
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=weight_decay)
        self._base_learning_rate = learning_rate
        self._schedule = schedule
        self._steps = 0

    @property
    def device(self) -> torch.device:
        return self._parameters[0].device

    @property
    def learning_rate(self) -> float:
        return self._base_learning_rate * self._schedule(self._steps)

    def forward(self, batch: MicroBatch) -> Tensor:
        logps_B: Tensor = self.policy(batch.input_ids_BT, batch.completion_mask_BT)
        return logps_B

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float | None:
        self._average_gradients()
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if math.isfinite(norm):
            self._optimizer.param_groups[0]["lr"] = self.learning_rate
            self._optimizer.step()
            self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return norm if math.isfinite(norm) else None

    def save(self, directory: Path) -> None:
        if self._gang.rank == 0:
            save_file(self._state(), directory / "engine.safetensors")

    def load(self, directory: Path) -> None:
        tensors = load_file(directory / "engine.safetensors", device=str(self.device))
        for name, parameter in zip(self._names, self._parameters, strict=True):
            with torch.no_grad():
                parameter.copy_(tensors[f"param.{name}"])
            prefix = f"adam.{name}."
            state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if state:  # none for a parameter that has not been updated yet
                self._optimizer.state[parameter] = state | {"step": state["step"].cpu()}
        self._steps = int(tensors["steps"])

    def export_state(self) -> dict[str, Tensor]:
        return dict(self.policy.lm.state_dict())  # type: ignore[union-attr]

    def _average_gradients(self) -> None:
        """One all-reduce of all gradients laid end to end; a parameter without gradient counts as zero."""
        if self._gang.size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        flat = self._gang.sum(torch.cat([g.reshape(-1) for g in grads])) / self._gang.size
        for parameter, grad in zip(self._parameters, torch.split(flat, [g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _state(self) -> dict[str, Tensor]:
        state = {"steps": torch.tensor(self._steps)}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            state[f"param.{name}"] = parameter.detach()
            for key, value in self._optimizer.state[parameter].items():
                state[f"adam.{name}.{key}"] = value
        return {key: value.contiguous() for key, value in state.items()}
