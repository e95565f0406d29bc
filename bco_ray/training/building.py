"""What trains: the policy in its engine, and the reference it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bco_ray.errors import TrainingError
from bco_ray.models import loading
from bco_ray.models.checkpointing import checkpoint_activations
from bco_ray.models.packing import Pack
from bco_ray.models.policy import Policy
from bco_ray.training import reference
from bco_ray.training.engine import Engine, Schedule, TorchEngine, warmup_schedule
from bco_ray.training.gang import Gang
from bco_ray.training.setup import TrainSetup


@dataclass(frozen=True)
class Trainee:
    """A policy, the engine that moves it and the reference of its rewards."""

    policy: Policy
    engine: Engine
    reference: reference.Reference


def build(setup: TrainSetup, gang: Gang, total_steps: int) -> Trainee:
    """Load the model and everything around it. Collective. Raises ModelError or SpecError before any step."""
    schedule = warmup_schedule(setup.lr_scheduler, total_steps=total_steps, warmup_ratio=setup.warmup_ratio)
    return (_with_torch if setup.zero_stage == 0 else _with_deepspeed)(setup, gang, schedule)


def _with_torch(setup: TrainSetup, gang: Gang, schedule: Schedule) -> Trainee:
    policy = _policy(setup)
    device = torch.device(setup.device)
    engine = TorchEngine(policy, gang, schedule=schedule, device=device, **_rates(setup))
    return Trainee(policy, engine, _reference(setup, engine, policy, lambda frozen: frozen.to(device)))


def _with_deepspeed(setup: TrainSetup, gang: Gang, schedule: Schedule) -> Trainee:
    from bco_ray.training import deepspeed_engine as ds  # 2 s to import; plain torch does without

    ds.prepare_process(setup.device)
    config = ds.deepspeed_config(
        zero_stage=setup.zero_stage, bf16=setup.bf16, offload=setup.offload, own=setup.deepspeed, **_rates(setup)
    )
    with ds.sharded_loading(config):
        policy = _policy(setup)
    engine = ds.DeepSpeedEngine(policy, config, schedule)

    def freeze(frozen: Policy) -> Callable[[Pack], Tensor]:
        return ds.frozen_engine(frozen, config) if setup.zero_stage == 3 else frozen.to(engine.device)

    with ds.sharded_loading(config):
        return Trainee(policy, engine, _reference(setup, engine, policy, freeze))


def _rates(setup: TrainSetup) -> dict[str, float]:
    names = ("learning_rate", "weight_decay", "max_grad_norm")
    return {name: getattr(setup, name) for name in names}


def _policy(setup: TrainSetup) -> Policy:
    lm = loading.load_policy(setup.model, setup.adapter, dtype=_dtype(setup), quantization=setup.quantization)
    if setup.gradient_checkpointing:
        checkpoint_activations(lm)
    return Policy(lm, head_chunk=setup.head_chunk)


def _dtype(setup: TrainSetup) -> torch.dtype:
    return torch.bfloat16 if setup.bf16 else torch.float32


def _reference(
    setup: TrainSetup, engine: Engine, policy: Policy, freeze: Callable[[Policy], Callable[[Pack], Tensor]]
) -> reference.Reference:
    if setup.reference == "precomputed":
        return reference.column
    if setup.reference == "adapter_off":
        _require_adapter_on_reference(setup)
        return reference.without_adapter(engine, policy.lm)
    directory = setup.reference_model or setup.model
    lm = loading.load_frozen(directory, dtype=_dtype(setup), quantization=setup.quantization)
    return reference.frozen(freeze(Policy(lm, head_chunk=setup.head_chunk)))


def _require_adapter_on_reference(setup: TrainSetup) -> None:
    wanted = setup.reference_model or setup.model
    if setup.adapter is None or loading.base_of(setup.model) != wanted:
        raise TrainingError(
            "objective.reference adapter_off needs model.adapter on top of the reference model itself: only then is "
            f"the model without its adapter that reference ({wanted}). Use precomputed or live."
        )
