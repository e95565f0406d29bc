"""The JSON that DeepSpeed gets: what the spec says, over what the user wrote in DeepSpeed's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bco_ray.config.deepspeed_json import PASSED_ON


def deepspeed_config(
    *,
    zero_stage: int,
    bf16: bool,
    learning_rate: float,
    weight_decay: float,
    max_grad_norm: float,
    offload: str = "none",
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`own` is a DeepSpeed JSON that `bco_ray.config` let pass; stage and offload are then read from it alone.

    `train_batch_size` is never set: the world size says it, and zero.Init may not know that yet. Adam is torch's own
    unless `own` says `torch_adam: false`, so nothing is compiled. bfloat16 gradients are summed over
    micro-batches in float32 where DeepSpeed can.
    """
    own = _without_auto(own or {"zero_optimization": {"stage": zero_stage} | _offloaded(offload)})
    optimizer = {"type": "AdamW"} | own.get("optimizer", {})
    adam = {"betas": [0.9, 0.999], "eps": 1e-8, "torch_adam": True} if "adam" in optimizer["type"].lower() else {}
    rates = {"lr": learning_rate, "weight_decay": weight_decay}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "optimizer": optimizer | {"params": adam | optimizer.get("params", {}) | rates},
        "zero_optimization": {"contiguous_gradients": True, "overlap_comm": False} | own["zero_optimization"],
        "bf16": own.get("bf16", own.get("bfloat16", {})) | {"enabled": bf16},
        "data_types": _sums_of_gradients(own["zero_optimization"], bf16) | own.get("data_types", {}),
        "steps_per_print": own.get("steps_per_print", 1_000_000_000),
    }
    return {key: value for key, value in own.items() if key in PASSED_ON - {"bfloat16", "fp16"}} | ours


def frozen_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a model that is never updated: no optimizer, the same sharding of parameters."""
    zero = {key: value for key, value in config["zero_optimization"].items() if key != "offload_optimizer"}
    return {key: value for key, value in config.items() if key != "optimizer"} | {"zero_optimization": zero}


def _sums_of_gradients(zero: Mapping[str, Any], bf16: bool) -> dict[str, str]:
    """Stage 1 knows no such thing without another optimizer; stage 2 offloaded would never forget a NaN in its sums."""
    possible = zero["stage"] == 3 or (zero["stage"] == 2 and "offload_optimizer" not in zero)
    return {"grad_accum_dtype": "fp32"} if bf16 and possible else {}


def _offloaded(offload: str) -> dict[str, Any]:
    """Parameters in host memory take the optimizer with them."""
    cpu = {"device": "cpu"}
    return {
        "none": {},
        "optimizer": {"offload_optimizer": cpu},
        "parameters": {"offload_optimizer": cpu, "offload_param": cpu},
    }[offload]


def _without_auto(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_auto(inner) for key, inner in value.items() if inner != "auto"}
    return value
