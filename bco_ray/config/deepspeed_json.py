"""DeepSpeed's own JSON: which of its words are passed on as they are, and which are ours to say.

Pure functions on mappings. A value "auto" means: whatever it is here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

FIELDS = frozenset({"zero_stage", "offload", "config"})
"""The fields of `training.deepspeed` that are ours; a mapping without any of them is DeepSpeed's JSON."""

PASSED_ON = frozenset({
    "aio", "bf16", "bfloat16", "comet", "comms_logger", "communication_data_type", "csv_monitor", "data_types",
    "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler", "fp16", "gradient_predivide_factor",
    "log_level", "memory_breakdown", "optimizer", "prescale_gradients", "seq_parallel_communication_data_type",
    "steps_per_print", "tensorboard", "timers", "use_data_before_expert_parallelism", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
})  # fmt: skip
"""Top-level keys of DeepSpeed 0.19 that reach it untouched, but for what the next two name inside of them."""

WRITING = frozenset({"aio", "comet", "comms_logger", "csv_monitor", "flops_profiler", "tensorboard", "wandb"})
"""Of these, those that may name files to write or places to send things to."""

REPEATABLE: dict[str, str] = {
    "train_batch_size": "training.rows_per_step",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer.params.lr": "training.learning_rate",
    "optimizer.params.weight_decay": "training.weight_decay",
    "bf16.enabled": "training.precision",
    "bfloat16.enabled": "training.precision",
}
"""Key path -> the field of the spec that says it; the JSON may repeat it."""

_NO_PARALLEL = "every worker gets rows of its own, so it is not supported; leave it out"
_NO_DATA = "the loop chooses the rows; leave it out"
_NO_SKIP = "a step that is not finite must be skipped; leave it out"

OURS: dict[str, tuple[Any, str]] = {
    "train_micro_batch_size_per_gpu": (None, "set training.max_tokens_per_micro_batch"),
    "gradient_accumulation_steps": (1, "set training.rows_per_step and training.max_tokens_per_micro_batch"),
    "managed_gradient_accumulation": (False, "the loop says when a step ends; leave it out"),
    "gradient_allreduce_op": ("mean", "the loss is scaled for the mean; leave it out"),
    "optimizer.params.max_grad_norm": (None, "set training.max_grad_norm"),
    "scheduler": (None, "set training.lr_scheduler and training.warmup_ratio"),
    "bf16.check_grad_overflow": (True, _NO_SKIP),
    "bfloat16.check_grad_overflow": (True, _NO_SKIP),
    "fp16.enabled": (None, "set training.precision to bf16"),
    "torch_autocast": (None, "set training.precision"),
    "zero_optimization.round_robin_gradients": (None, "it permutes DeepSpeed's own view of the weights; leave it out"),
    "zero_optimization.compute_grad_norm": (True, "the gradient norm is needed; leave it out"),
    "activation_checkpointing": (None, "set training.gradient_checkpointing"),
    "checkpoint": (None, "set training.checkpoint"),
    "datastates_ckpt": (None, "set training.checkpoint"),
    "autotuning": (None, "it needs DeepSpeed's launcher; leave it out"),
    "compile": (None, "DeepCompile needs DeepSpeed's own accumulation; leave it out"),
    "data_efficiency": (None, _NO_DATA),
    "dataloader_drop_last": (None, _NO_DATA),
    "expert_parallel": (None, _NO_PARALLEL),
    "hybrid_engine": (None, "nothing is generated while training; leave it out"),
    "pipeline": (None, _NO_PARALLEL),
    "sequence_parallel_size": (1, _NO_PARALLEL),
    "tensor_parallel": (None, _NO_PARALLEL),
    "vocabulary_size": (None, "the model's config says it; leave it out"),
    "weight_quantization": (None, "set model.quantization"),
}
"""Key path -> the value that changes nothing here (beside "auto", false and null), and the way out."""

KNOWN = PASSED_ON | {path.partition(".")[0] for path in (*REPEATABLE, *OURS)}


class Problem(NamedTuple):
    """One key that cannot be used as it is."""

    path: tuple[str, ...]
    reason: str
    value: Any


def as_section(value: Any) -> Any:
    """Any form of `training.deepspeed` (our fields, DeepSpeed's JSON, a file of it) as a mapping with our fields.

    What is none of these is left for pydantic to refuse. Raises ValueError if a file cannot be read.
    """
    if isinstance(value, str) or (isinstance(value, dict) and value and not FIELDS & value.keys()):
        value = {"config": value}
    config = value.get("config") if isinstance(value, dict) else None
    config = _read(config) if isinstance(config, str) else config
    if not isinstance(config, dict):
        return value
    return {"zero_stage": stage_of(config), "offload": offload_of(config), **value, "config": config}


def stage_of(config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed JSON; 0, as in DeepSpeed, where none is given."""
    stage = _at(config, "zero_optimization.stage")
    return stage if isinstance(stage, int) and not isinstance(stage, bool) else 0


def offload_of(config: Mapping[str, Any]) -> str:
    """What a DeepSpeed JSON keeps off the device, in the words of `training.deepspeed.offload`."""
    for key, word in (("offload_param", "parameters"), ("offload_optimizer", "optimizer")):
        if _at(config, f"zero_optimization.{key}.device") not in (None, "none"):
            return word
    return "none"


def problems(zero_stage: int, offload: str, config: Mapping[str, Any] | None) -> Iterator[Problem]:
    """What in the section cannot be, whatever the rest of the spec says."""
    if zero_stage == 0 and offload != "none":
        yield Problem(("offload",), "plain torch (zero_stage 0) offloads nothing; set zero_stage to 1, 2 or 3", offload)
    if zero_stage in (1, 2) and offload == "parameters":
        yield Problem(("offload",), "only zero_stage 3 can keep parameters in host memory; set it, or none", offload)
    if config is not None:
        if (zero_stage, offload) != (stage_of(config), offload_of(config)):
            reason = f"config says stage {stage_of(config)} and offload {offload_of(config)}; change it there"
            yield Problem(("zero_stage",), reason, zero_stage)
        yield from _problems_of_json(config)


def conflicts(config: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Where a DeepSpeed JSON contradicts the rest of the spec. `spec`: the names in `REPEATABLE` -> their values.

    Precision counts as whether it is bfloat16, "auto" as itself.
    """
    for path, field in REPEATABLE.items():
        value, ours = _at(config, path), spec[field]
        ours = {"bf16": True, "fp32": False}.get(ours, ours) if field == "training.precision" else ours
        if value not in (None, "auto", ours):
            reason = f'set {field} (now {spec[field]}) to what you want, and leave this out or at "auto"'
            yield Problem(tuple(path.split(".")), reason, value)


def refuse(found: Iterable[Problem], *, within: str | None = None) -> None:
    """If there is any: raise one error of pydantic's that names every key by its path, inside the field `within`."""
    errors = [
        InitErrorDetails(
            type=PydanticCustomError("deepspeed", "{reason}", {"reason": problem.reason}),
            loc=(within, *problem.path) if within else problem.path,
            input=problem.value,
        )
        for problem in found
    ]
    if errors:
        raise ValidationError.from_exception_data("training.deepspeed", errors)


def says_nothing(value: Any) -> bool:
    """Absent, switched off or left to us: "auto", null, false, or a mapping or list of nothing else."""
    if isinstance(value, Mapping):
        return value.get("enabled") is False or all(says_nothing(inner) for inner in value.values())
    return value is None or value is False or value in ("auto", [])


def _problems_of_json(config: Mapping[str, Any]) -> Iterator[Problem]:
    for key in sorted(config.keys() - KNOWN):
        yield Problem((key,), f"unknown to DeepSpeed{_nearest(key)}", config[key])
    if stage_of(config) not in (1, 2, 3):
        reason = "a DeepSpeed JSON must name stage 1, 2 or 3; for plain torch set training.deepspeed.zero_stage to 0"
        yield Problem(("zero_optimization",), reason, config.get("zero_optimization"))
    for path, (accepted, way_out) in OURS.items():
        value = _at(config, path)
        silent = value in (None, "auto") if accepted is True else says_nothing(value)
        if not silent and value != accepted:
            yield Problem(tuple(path.split(".")), f"this is not said here: {way_out}", value)
    if stage_of(config) == 1 and _at(config, "zero_optimization.overlap_comm") is True:
        yield Problem(("zero_optimization", "overlap_comm"), "it needs stage 2 or 3; leave it out", True)
    for part in ("offload_optimizer", "offload_param"):
        if _at(config, f"zero_optimization.{part}.device") == "nvme":
            reason = "no checkpoint can be made of what waits on NVMe; use cpu"
            yield Problem(("zero_optimization", part, "device"), reason, "nvme")
    sums = _at(config, "data_types.grad_accum_dtype")
    if stage_of(config) == 2 and offload_of(config) == "optimizer" and sums not in (None, "auto"):
        reason = "with stage 2 and offload_optimizer a step that is not finite would spoil all later ones; use stage 3"
        yield Problem(("data_types", "grad_accum_dtype"), reason, sums)


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, sorted(KNOWN | FIELDS), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _read(name: str) -> Any:
    path = Path(name).expanduser()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot read the DeepSpeed JSON: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a DeepSpeed JSON is a mapping with zero_optimization and more")
    return config
