"""DeepSpeed's own JSON: passed on as it is, except for what is ours, which is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bco_ray.config import JobSpec, deepspeed_json, dump_spec
from bco_ray.config.load import parse_spec
from bco_ray.errors import SpecError
from bco_ray.training.deepspeed_config import deepspeed_config, frozen_config

NUMBERS = {"learning_rate": 1e-5, "weight_decay": 0.0, "max_grad_norm": 1.0}

TRANSFORMERS_EXAMPLE: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""The stage 3 example of transformers' documentation, without its scheduler."""


def spec_with(deepspeed: Any, **training: Any) -> JobSpec:
    values = {"name": "a", "model": {"base": "m"}, "data": {"feedback": "f"}}
    return parse_spec({**values, "training": {"deepspeed": deepspeed, **training}}, where="spec.yaml")


def refusal(deepspeed: Any, **training: Any) -> str:
    with pytest.raises(SpecError) as caught:
        spec_with(deepspeed, **training)
    return str(caught.value)


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_a_json_written_for_transformers_is_understood(form: str, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(TRANSFORMERS_EXAMPLE))
    section = spec_with(TRANSFORMERS_EXAMPLE if form == "mapping" else str(file)).training.deepspeed
    assert (section.zero_stage, section.offload, section.config) == (3, "optimizer", TRANSFORMERS_EXAMPLE)


def test_the_resolved_spec_holds_the_json_itself(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(TRANSFORMERS_EXAMPLE))
    spec = spec_with(str(file))
    file.unlink()
    assert parse_spec(yaml.safe_load(dump_spec(spec)), where="spec.resolved.yaml") == spec


@pytest.mark.parametrize(
    ("key", "value", "way_out"),
    [
        ("train_batch_size", 64, "set training.rows_per_step (now 128)"),
        ("train_micro_batch_size_per_gpu", 4, "set training.max_tokens_per_micro_batch"),
        ("gradient_accumulation_steps", 8, "set training.rows_per_step"),
        ("gradient_clipping", 0.5, "set training.max_grad_norm (now 1.0)"),
        ("optimizer.params.lr", 1e-4, "set training.learning_rate (now auto)"),
        ("optimizer.params.weight_decay", 0.1, "set training.weight_decay (now 0.0)"),
        ("optimizer.params.max_grad_norm", 1.0, "set training.max_grad_norm"),
        ("scheduler", {"type": "WarmupLR"}, "set training.lr_scheduler"),
        ("bf16.enabled", True, "set training.precision (now auto)"),
        ("bf16.check_grad_overflow", False, "must be skipped"),
        ("fp16.enabled", True, "set training.precision"),
        ("torch_autocast", {"enabled": True, "dtype": "bfloat16"}, "set training.precision"),
        ("gradient_allreduce_op", "sum", "scaled for the mean"),
        ("managed_gradient_accumulation", True, "leave it out"),
        ("zero_optimization.round_robin_gradients", True, "leave it out"),
        ("zero_optimization.compute_grad_norm", False, "leave it out"),
        ("activation_checkpointing", {"partition_activations": True}, "set training.gradient_checkpointing"),
        ("checkpoint", {"load_universal": True}, "set training.checkpoint"),
        ("tensor_parallel", {"autotp_size": 2}, "not supported"),
        ("compile", {"deepcompile": True}, "leave it out"),
    ],
)
def test_what_the_spec_says_is_refused_with_the_way_out(key: str, value: Any, way_out: str) -> None:
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    *path, last = key.split(".")
    inner = config
    for name in path:
        inner = inner.setdefault(name, {})
    inner[last] = value
    message = refusal(config)
    assert f"training.deepspeed.{key}: " in message
    assert way_out in message


def test_the_same_numbers_may_be_repeated() -> None:
    config = {
        "zero_optimization": {"stage": 1},
        "train_batch_size": 32,
        "gradient_clipping": 0.3,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "weight_decay": 0.1, "betas": [0.9, 0.95]}},
        "gradient_accumulation_steps": 1,
        "scheduler": None,
        "fp16": {"enabled": False},
    }
    same = {"rows_per_step": 32, "max_grad_norm": 0.3, "precision": "bf16", "learning_rate": 2e-5, "weight_decay": 0.1}
    assert spec_with(config, **same).training.deepspeed.zero_stage == 1
    for field, other in {"rows_per_step": 64, "precision": "fp32", "learning_rate": 1e-5}.items():
        assert f"set training.{field} (now {other})" in refusal(config, **(same | {field: other}))


def test_all_problems_are_told_at_once() -> None:
    message = refusal(
        {"zero_optimization": {"stage": 2}, "train_batch_size": 2, "scheduler": {"type": "X"}, "steps": 1}
    )
    assert "training.deepspeed.scheduler" in message
    assert "training.deepspeed.steps: unknown to DeepSpeed" in message


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        (
            {"zero_optimisation": {"stage": 2}},
            "zero_optimisation: unknown to DeepSpeed; did you mean zero_optimization?",
        ),
        ({"zero_stag": 2}, "zero_stag: unknown to DeepSpeed; did you mean zero_stage?"),
        ({"bf16": {"enabled": "auto"}}, "must name stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "set training.deepspeed.zero_stage to 0"),
        ({"zero_optimization": {"stage": 4}}, "training.deepspeed.zero_stage"),
        ({"zero_optimization": {"stage": 1, "overlap_comm": True}}, "overlap_comm: it needs stage 2 or 3"),
        ({"zero_stage": 2, "bf16": {}}, "unknown key training.deepspeed.bf16"),
        ({"zero_stage": 2, "config": {"zero_optimization": {"stage": 3}}}, "config says stage 3"),
        ({"zero_stage": 2, "offload": "parameters"}, "training.deepspeed.offload: only zero_stage 3"),
        ({"zero_stage": 0, "offload": "optimizer"}, "training.deepspeed.offload: plain torch"),
        ("no/such.json", "cannot read the DeepSpeed JSON"),
    ],
)
def test_what_cannot_be_is_named(deepspeed: Any, message: str) -> None:
    assert message in refusal(deepspeed)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    for text, message in {"{": "not valid JSON", "[]": "is a mapping"}.items():
        file.write_text(text)
        assert message in refusal(str(file))


def test_deepspeed_gets_the_users_words_and_our_numbers() -> None:
    own = TRANSFORMERS_EXAMPLE | {"comms_logger": {"enabled": True}}
    own["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95]}}
    config = deepspeed_config(zero_stage=3, bf16=True, own=own, **NUMBERS)
    assert config["optimizer"]["params"] == {
        "lr": 1e-5, "weight_decay": 0.0, "betas": [0.9, 0.95], "eps": 1e-8, "torch_adam": True
    }  # fmt: skip
    assert config["zero_optimization"] == {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": True,
        "sub_group_size": 1e9, "stage3_gather_16bit_weights_on_model_save": True, "contiguous_gradients": True,
    }  # fmt: skip
    assert config["comms_logger"] == {"enabled": True}
    assert config["bf16"] == {"enabled": True}
    assert "fp16" not in config
    assert "train_batch_size" not in config
    assert "auto" not in json.dumps(config)


def test_another_optimizer_is_left_alone() -> None:
    own = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Muon", "params": {"muon_lr": 0.02}}}
    params = deepspeed_config(zero_stage=2, bf16=False, own=own, **NUMBERS)["optimizer"]["params"]
    assert params == {"muon_lr": 0.02, "lr": 1e-5, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("zero_stage", "offload", "sums"),
    [(1, "none", None), (2, "none", "fp32"), (2, "optimizer", None), (3, "parameters", "fp32")],
)
def test_bfloat16_gradients_are_summed_in_float32_where_a_nan_is_forgotten(
    zero_stage: int, offload: str, sums: str | None
) -> None:
    config = deepspeed_config(zero_stage=zero_stage, bf16=True, offload=offload, **NUMBERS)
    assert config["data_types"].get("grad_accum_dtype") == sums
    given = {"zero_optimization": config["zero_optimization"], "data_types": {"grad_accum_dtype": "fp32"}}
    if (zero_stage, offload) == (2, "optimizer"):
        assert "spoil all later ones" in refusal(given)


def test_a_frozen_model_has_no_optimizer() -> None:
    config = frozen_config(deepspeed_config(zero_stage=3, bf16=True, offload="parameters", **NUMBERS))
    assert "optimizer" not in config
    assert config["zero_optimization"].keys() == {"stage", "offload_param", "contiguous_gradients", "overlap_comm"}


class Recording(dict[str, Any]):
    """Remembers which keys it was asked for."""

    asked: set[str] = set()  # noqa: RUF012 - shared on purpose: DeepSpeed copies its config

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_the_known_keys_are_those_that_deepspeed_looks_for() -> None:
    """DeepSpeed ignores the ones it does not know, so a new version's must be sorted by hand."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig

    DeepSpeedConfig(Recording(train_micro_batch_size_per_gpu=1))
    looked_for = Recording.asked - set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert looked_for | {"sequence_parallel_size"} == deepspeed_json.KNOWN  # asked for only in a process group
