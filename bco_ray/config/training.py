"""The spec's `training` section: the optimizer, the workers, how state is shared out, checkpoints and failures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bco_ray.config import deepspeed_json
from bco_ray.config.section import Auto, Positive, PositiveInt, Section


class ZeroSpec(Section):
    """How state is shared out: ZeRO stage 0 (plain torch) to 3 (DeepSpeed), and what of it waits in host memory.

    Instead of these two: DeepSpeed's own JSON, as a mapping or the path of a file. It is kept as `config`, and they
    follow from it.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "parameters"] = "none"
    config: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_any_form(cls, value: Any) -> Any:
        return deepspeed_json.as_section(value)

    @model_validator(mode="after")
    def _possible(self) -> ZeroSpec:
        deepspeed_json.refuse(deepspeed_json.problems(self.zero_stage, self.offload, self.config))
        return self


class CheckpointSpec(Section):
    """A checkpoint every so many optimizer steps (and at the end), written while training goes on.

    The newest `keep` stay, and the `keep_best` best by the mean of `best_by` since the checkpoint before. `storage`: a
    directory or URI for checkpoints alone; none: in the run's directory.
    """

    every_steps: int = Field(default=50, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_best: int = Field(default=0, ge=0)
    best_by: Literal["auc", "loss", "rewards/margins", "rewards/accuracies"] = "auc"
    storage: str | None = None

    @model_validator(mode="after")
    def _writable(self) -> CheckpointSpec:
        scheme, mark, _ = (self.storage or "").partition("://")
        if mark and scheme not in {"file", "s3", "gs"}:
            raise ValueError(f"storage: {self.storage} cannot be written to; use a directory, s3:// or gs://")
        return self


CIRCUMSTANCES = frozenset(
    {
        "learning_rate", "learning_rate_multiplier", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm",
        "max_tokens_per_micro_batch", "gradient_checkpointing", "deepspeed", "num_workers", "resources_per_worker",
        "max_failures", "hang_seconds", "checkpoint",
    }
)  # fmt: skip
"""Of `training`: what a checkpoint does not depend on, so that a run that goes on from it may have its own."""


def first_step(start: str | None) -> int:
    """That a run does itself, of its `training.start`: those before are of the run that it goes on from."""
    return int((start or ":0").rpartition(":")[2])


class TrainingSpec(Section):
    """The optimizer and the gang. `auto`: learning rate from model size and adapter, micro-batch from the machine.

    `learning_rate_multiplier` times that rate is used. `num_workers`: a number, or [fewest, most] to train on as many
    as there is room for. `max_failures`: restarts in a row without a new checkpoint. `hang_seconds` without a step end
    a worker. `start`: `<run>:<step>`, a checkpoint of another run in this storage, from which this one goes on.
    """

    learning_rate: Positive | Auto = "auto"
    learning_rate_multiplier: Positive = 1.0
    num_train_epochs: int = Field(default=1, ge=1)
    rows_per_step: int = Field(default=128, ge=2)
    max_length: int = Field(default=2048, ge=8)
    max_tokens_per_micro_batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    lr_scheduler: Literal["linear", "constant"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deepspeed: ZeroSpec = Field(default_factory=ZeroSpec)
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    num_workers: Annotated[int, Field(ge=1)] | tuple[PositiveInt, PositiveInt] = 2
    resources_per_worker: dict[str, float] = Field(default_factory=lambda: {"CPU": 1.0})
    max_failures: int = Field(default=2, ge=0)
    hang_seconds: float = Field(default=1800, ge=1, allow_inf_nan=False)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    seed: int = 0
    start: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*:\d+$")] | None = None

    @property
    def workers(self) -> tuple[int, int]:
        """Fewest and most."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError("[fewest, most] must be in that order")
        return value

    @model_validator(mode="after")
    def _said_once(self) -> TrainingSpec:
        ours = {field: getattr(self, field.removeprefix("training.")) for field in deepspeed_json.REPEATABLE.values()}
        deepspeed_json.refuse(deepspeed_json.conflicts(self.deepspeed.config or {}, ours), within="deepspeed")
        return self
