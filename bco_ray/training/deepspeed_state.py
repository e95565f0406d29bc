"""What ZeRO 1 to 3 keep, as fragments of named parameters: read out of DeepSpeed's flat partitions, and put back.

DeepSpeed's own checkpoints are pickles that only the same number of workers can read; these are neither. Under stages 1
and 2 a parameter's `_hp_mapping` says where in this worker's flat float32 partition its elements are; under stage 3
`grad_position` does. Written against DeepSpeed 0.19; `tests/training/test_fragments.py` holds it to the plain engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bco_ray.errors import TrainingError
from bco_ray.training.fragments import WEIGHT, Fragment, SavedState, pieces_of, restored_number


@dataclass(frozen=True)
class _Slot:
    """`numel` elements of a parameter from `start` on, at `offset` of the flat partition that the optimizer sees."""

    name: str
    start: int
    numel: int
    flat: Tensor
    offset: int

    def view(self, flat: Tensor) -> Tensor:
        """Its elements in a tensor as large as the partition."""
        return flat.view(-1).narrow(0, self.offset, self.numel)


def fragments(engine: Any, stage: int) -> list[Fragment]:
    """This worker's share, as live tensors."""
    base = _base(engine)
    return [_fragment(slot, base.state.get(slot.flat, {})) for slot in _slots(engine, stage)]


def _fragment(slot: _Slot, state: dict[str, Any]) -> Fragment:
    tensors, numbers = {WEIGHT: slot.view(slot.flat.detach())}, {}
    for kind, value, whole in pieces_of(state, slot.flat):
        if whole:
            tensors[kind] = slot.view(value)
        elif isinstance(value, int | float) or value.dim() == 0:
            numbers[kind] = value
        else:
            raise TrainingError(
                f"training.deepspeed.optimizer: it keeps {kind} of shape {tuple(value.shape)}, which a checkpoint "
                "cannot cut up. Use AdamW."
            )
    return Fragment(slot.name, slot.start, tensors, numbers)


@torch.no_grad()
def restore(engine: Any, stage: int, saved: SavedState) -> None:
    """Fill this worker's partitions; the model's weights follow with `settle`."""
    base = _base(engine)
    for slot in _slots(engine, stage):
        slot.view(slot.flat).copy_(saved.read(slot.name, WEIGHT, slot.start, slot.numel))
        for kind in saved.kinds(slot.name) - {WEIGHT}:
            state = base.state[slot.flat]
            if kind not in state:
                state[kind] = torch.zeros_like(slot.flat)
            slot.view(state[kind]).copy_(saved.read(slot.name, kind, slot.start, slot.numel))
        for kind, number in saved.numbers(slot.name).items():
            base.state[slot.flat][kind] = restored_number(number, _device_of_numbers(base, slot.flat))


def settle(engine: Any, stage: int) -> None:
    """The model's weights become the restored ones, on all workers. Collective."""
    zero = engine.optimizer
    if stage < 3:
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()
    for group in range(len(zero.fp16_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    zero.checkpoint_event_epilogue()


def _base(engine: Any) -> Any:
    """The torch optimizer under ZeRO's."""
    return engine.optimizer.optimizer


def _slots(engine: Any, stage: int) -> Iterator[_Slot]:
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    return (_whole_slots if stage < 3 else _cut_slots)(engine, named)


def _whole_slots(engine: Any, named: list[tuple[str, Any]]) -> Iterator[_Slot]:
    """Stages 1 and 2: parameters are whole, the optimizer's partition is a stretch of all of them laid end to end."""
    groups = _base(engine).param_groups
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is not None:  # None: all of it is other workers'
            flat = groups[mapping.param_group_index]["params"][0]
            there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield _Slot(name, there.start, here.numel, flat, here.start)


def _cut_slots(engine: Any, named: list[tuple[str, Any]]) -> Iterator[_Slot]:
    """Stage 3: every parameter is cut evenly over the workers, the last cut padded."""
    zero = engine.optimizer
    if zero.swap_optimizer:
        raise TrainingError("training.deepspeed: no checkpoint is made of what waits on NVMe; offload to cpu instead.")
    for name, parameter in named:
        group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = zero._get_param_partition_rank(parameter) * padded
        numel = min(padded, parameter.ds_numel - start)
        if numel > 0:
            yield _Slot(name, start, numel, zero.fp32_partitioned_groups_flat[group], offset)


def _device_of_numbers(base: Any, flat: Tensor) -> torch.device:
    """Where torch's Adam wants its step: beside the parameter if a fused kernel counts."""
    group = base.param_groups[0]
    return flat.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
