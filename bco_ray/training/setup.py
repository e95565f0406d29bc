"""What a training worker is told, in plain values: it travels through Ray, and to disk, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bco_ray.objective import RewardShift, SourceOffsets
from bco_ray.training.plan import POOL_ROWS
from bco_ray.training.step import Objective

ReferenceKind = Literal["precomputed", "adapter_off", "live"]


@dataclass(frozen=True)
class TrainSetup:
    """Everything a worker needs. Paths are on storage that all workers share.

    `shift`: the state the reward shift starts from (`RewardShift.state_dict`); None: no rows seen, or a probe where
    policy and reference differ. `offsets`: of each source's delta; None: all rows have one.
    `reference_model`: where it is another than `model`. `deepspeed`: a DeepSpeed JSON of the
    user's, beside which `zero_stage` says its stage. `max_tokens_per_micro_batch` 0: found by a dry run.
    `checkpoint_storage`: a directory or URI for checkpoints alone; None: in the run's directory. `hang_seconds`: a
    worker that takes no step for so long ends itself.
    """

    scored: str
    model: str
    run: str
    adapter: dict[str, Any] | None
    objective: Objective
    half_life_rows: float
    learning_rate: float
    lr_scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    epochs: int
    rows_per_step: int
    max_tokens_per_micro_batch: int
    zero_stage: int
    bf16: bool
    device: str
    checkpoint_every: int
    checkpoint_keep: int
    seed: int
    identity: dict[str, Any] = field(default_factory=dict)
    shift: dict[str, Any] | None = None
    reference: ReferenceKind = "precomputed"
    reference_model: str | None = None
    max_length: int = 2048
    offload: str = "none"
    deepspeed: dict[str, Any] | None = None
    gradient_checkpointing: bool = False
    quantization: str = "none"
    head_chunk: int = 0
    trackers: tuple[str, ...] = ()
    checkpoint_keep_best: int = 0
    checkpoint_best: str = "auc"
    checkpoint_storage: str | None = None
    hang_seconds: float = 1800.0
    pool_rows: int = POOL_ROWS
    threads: int = 1
    offsets: SourceOffsets | None = None

    @property
    def initial_shift(self) -> RewardShift:
        """Where the reward shift starts, unless it is to be probed."""
        plain = RewardShift(half_life_rows=self.half_life_rows)
        return plain if self.shift is None else RewardShift.from_state(self.shift)

    @property
    def starts_at_reference(self) -> bool:
        """Whether the policy is its reference before the first step: then all rewards are 0, and so is delta."""
        return self.reference_model in (None, self.model)

    def as_dict(self) -> dict[str, Any]:
        """For Ray's `train_loop_config`, and for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSetup:
        """The inverse of `as_dict`."""
        objective, offsets = Objective(**values["objective"]), values.get("offsets")
        offsets = None if offsets is None else SourceOffsets.from_state(offsets)
        trackers = tuple(values.get("trackers", ()))
        return cls(**{**values, "objective": objective, "trackers": trackers, "offsets": offsets})
