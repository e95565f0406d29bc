"""Collectives behind one small interface, so that nothing else asks how many processes there are."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Gang(Protocol):
    """The processes that train one model together."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all processes, the same bits on each; `tensor` is left alone."""

    def barrier(self) -> None:
        """Return when everybody has arrived."""


class SoloGang:
    """One process."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor.clone()

    def barrier(self) -> None:
        """Nobody to wait for."""


class TorchGang:
    """The default torch.distributed process group, already initialised (by Ray Train or torchrun)."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """One all-reduce, on the backend's device."""
        total = tensor.to(self._device, copy=True)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.to(tensor.device)

    def barrier(self) -> None:
        """One small all-reduce: works on gloo and NCCL alike."""
        self.sum(torch.zeros(1))


def current_gang() -> Gang:
    """The gang of this process: the initialised process group, else alone."""
    return TorchGang() if dist.is_available() and dist.is_initialized() else SoloGang()
