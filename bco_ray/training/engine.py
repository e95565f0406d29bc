"""The optimizer behind one small interface: plain torch here, DeepSpeed in `deepspeed_engine`.

Both average gradients over the gang, so a caller that wants the gradient of a sum over all workers multiplies its loss
by the gang's size; both clip by the global norm and leave everything untouched when a gradient is not finite. The
schedule counts attempted steps, so that it depends on the plan alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from bco_ray.models.packing import Pack
from bco_ray.training.fragments import WEIGHT, Fragment, SavedState, pieces_of, restored_number, share
from bco_ray.training.gang import Gang

Schedule = Callable[[int], float]
"""Optimizer steps attempted so far -> factor on the learning rate."""

REDUCED_AT_ONCE = 2**25
"""Gradient numbers in one all-reduce: enough to fill the wire; a larger gradient goes by itself."""


class Engine(Protocol):
    """What the training step needs. In plain torch only the last five wait for the device."""

    def forward(self, pack: Pack) -> Tensor:
        """Sequence log-probabilities (B,), float32, with gradient where that is enabled."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar."""

    def step(self) -> Tensor:
        """Average, clip, update. The gradient norm before clipping, 0-d; not finite: nothing was updated."""

    @property
    def learning_rate(self) -> float:
        """The rate the next step uses."""

    @property
    def device(self) -> torch.device:
        """Where batches must be."""

    @property
    def layout(self) -> str:
        """How the state is cut over the workers; two engines of one layout hold the same pieces on the same ranks."""

    def fragments(self) -> list[Fragment]:
        """This worker's share of weights and optimizer state, as live tensors; all shares together are all of it."""

    def restore(self, saved: SavedState, steps: int) -> None:
        """Take over what `fragments` gave, of any layout, after `steps` steps. Not collective; `settle` must follow."""

    def settle(self) -> None:
        """Bring the model's weights in line with the restored ones. Collective."""

    def export_state(self) -> dict[str, Tensor]:
        """What `save_pretrained` needs: the wrapped LM's state dict. Collective; worker 0's answer counts."""

    def close(self) -> None:
        """Give back what it holds beyond the policy; it is of no use afterwards."""


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
    """AdamW in plain torch, whole state on every worker; gradients are averaged before each step (ZeRO 0).

    Weights of another type than float32 get float32 masters, which are what the optimizer moves and what checkpoints
    hold, and their gradients are summed over micro-batches in float32.
    """

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
        trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in trained]
        self._weights = [p for _, p in trained]
        self._masters = [_master_of(p) for p in self._weights]
        self._max_grad_norm = max_grad_norm
        self._optimizer = torch.optim.AdamW(self._masters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._base_learning_rate = learning_rate
        self._schedule = schedule
        self._steps = 0

    @property
    def device(self) -> torch.device:
        return self._weights[0].device

    @property
    def learning_rate(self) -> float:
        return self._base_learning_rate * self._schedule(self._steps)

    def forward(self, pack: Pack) -> Tensor:
        logps_B: Tensor = self.policy(pack)
        return logps_B

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> Tensor:
        for master in self._masters:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
        grads = [master.grad for master in self._masters if master.grad is not None]
        _average(grads, self._gang)
        norm = nn.utils.get_total_norm(grads)
        nn.utils.clip_grads_with_norm_(self._masters, self._max_grad_norm, norm)
        self._optimizer.param_groups[0]["lr"] = self.learning_rate
        # The fused optimizer looks at this flag on the device and leaves everything alone if it is 1.
        self._optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        self._copy_masters()
        return norm

    @property
    def layout(self) -> str:
        return "even"

    def fragments(self) -> list[Fragment]:
        """Every worker holds everything; each gives an even share."""
        sizes = [master.numel() for master in self._masters]
        return [
            self._fragment(number, start, end) for number, start, end in share(sizes, self._gang.rank, self._gang.size)
        ]

    def restore(self, saved: SavedState, steps: int) -> None:
        for name, master in zip(self._names, self._masters, strict=True):
            found = {kind: saved.read(name, kind, 0, master.numel()).view_as(master) for kind in saved.kinds(name)}
            with torch.no_grad():
                master.copy_(found.pop(WEIGHT))
            numbers = {kind: restored_number(n, self.device) for kind, n in saved.numbers(name).items()}
            if found or numbers:  # none for a parameter that has not been updated yet
                self._optimizer.state[master] = {kind: t.to(self.device) for kind, t in found.items()} | numbers
        self._steps = steps

    def settle(self) -> None:
        self._copy_masters()

    def export_state(self) -> dict[str, Tensor]:
        return dict(self.policy.lm.state_dict())  # type: ignore[union-attr]

    def close(self) -> None:
        self._masters.clear()
        self._optimizer.state.clear()

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is not master:
                weight.copy_(master)

    def _fragment(self, number: int, start: int, end: int) -> Fragment:
        master = self._masters[number]
        tensors, numbers = {WEIGHT: master.detach().view(-1)[start:end]}, {}
        for kind, value, whole in pieces_of(self._optimizer.state[master], master):
            if whole:
                tensors[kind] = value.view(-1)[start:end]
            else:
                numbers[kind] = value
        return Fragment(self._names[number], start, tensors, numbers)


def _master_of(weight: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a float32 copy that collects its gradient as soon as there is one."""
    if weight.dtype == torch.float32:
        return weight
    master = nn.Parameter(weight.detach().float())

    def collect(parameter: Tensor) -> None:
        assert parameter.grad is not None
        master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
    return master


def _average(grads: Sequence[Tensor], gang: Gang) -> None:
    """In place, in as many all-reduces as the wire likes; all workers have the same gradients in the same order."""
    if gang.size == 1:
        return
    for group in _groups(grads):
        flat = gang.sum(torch.cat([grad.reshape(-1) for grad in group])) / gang.size
        for grad, mean in zip(group, torch.split(flat, [grad.numel() for grad in group]), strict=True):
            grad.copy_(mean.view_as(grad))


def _groups(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    for grad in grads:
        if group and sum(g.numel() for g in group) + grad.numel() > REDUCED_AT_ONCE:
            yield group
            group = []
        group.append(grad)
    if group:
        yield group
