"""The spec and its sections. A field says its unit and what `auto` becomes; `bco_ray.pipeline` turns it into values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from bco_ray.config.evaluation import EvaluationSpec, JudgeSpec
from bco_ray.config.gate import GateSpec
from bco_ray.config.rounds import RoundsSpec
from bco_ray.config.section import Auto, Name, NotNegative, NotNegativeInt, Positive, PositiveInt, Section
from bco_ray.config.training import TrainingSpec

DEFAULT_LABEL_MAP: dict[str, bool] = {
    "true": True, "false": False, "True": True, "False": False, "1": True, "0": False,
    "thumbs_up": True, "thumbs_down": False, "up": True, "down": False,
}  # fmt: skip
"""Label spellings understood without a `label_map`; JSON true/false and 1/0 are looked up as these strings."""


class LoraSpec(Section):
    """A low-rank adapter (peft). `target_modules` is `all-linear` or a list of module names."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    target_modules: str | list[str] = "all-linear"


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _label_spellings(value: Any) -> Any:
    """A spelling is text; numbers are taken as typed. YAML has already turned an unquoted `yes` into true."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(key, bool) for key in value):
        raise ValueError("put labels such as 'yes', 'no', 'on', 'true' in quotes: YAML reads them as booleans")
    return {str(key): label for key, label in value.items()}


def _on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _no_adapter(value: Any) -> Any:
    return None if value == "none" else value


KEPT = "kept"
"""As `model.reference`: the one that the base version was itself trained with."""


class ModelSpec(Section):
    """`base`: a Hugging Face model directory (or hub id with `revision`), or `name/3` / `name@prod` of our registry.

    `reference`: the frozen model that rewards are measured against, named as `base` is; None: the base itself; `kept`:
    the one that the base version was trained with.
    `quantization` of the base's weights (bitsandbytes): for the reference pass and for training an adapter alike.
    """

    base: str
    revision: str | None = None
    reference: str | None = None
    adapter: Annotated[LoraSpec | None, BeforeValidator(_no_adapter)] = None
    quantization: Literal["none", "nf4", "int8"] = "none"

    @model_validator(mode="after")
    def _trainable(self) -> ModelSpec:
        if self.quantization != "none" and self.adapter is None:
            raise ValueError("quantization: quantised weights cannot be trained; set model.adapter to {type: lora}")
        return self


class FieldMap(Section):
    """Where a log of one's own keeps things: name of a record's field -> dotted path into the row (`answer.text`)."""

    map: dict[str, str] = Field(min_length=1)


class DataSpec(Section):
    """Which feedback. An entry is a path, a glob, a URI, or the server's own log: `feedback`, `feedback:` (what
    `model.base` has not learned from), `feedback:<manifest>`.

    `format`: `auto` detects each file's, or an importer's name, or `{map: ...}`. `label_map` `auto`: the common
    spellings and the format's own; a value of null makes a spelling neutral. `score`: which one, where a product keeps
    many kinds. `conflicts`: votes of different people on
    one answer are all kept, or only those of the majority. `max_votes_per_user`: the newest so many count.
    """

    feedback: Annotated[list[str], BeforeValidator(_one_or_many)] = Field(min_length=1)
    format: str | FieldMap = "auto"
    label_map: Annotated[dict[str, StrictBool | None] | Auto, BeforeValidator(_label_spellings)] = "auto"
    score: str | None = None
    conflicts: Literal["keep", "majority"] = "keep"
    duplicates: Literal["drop", "keep"] = "drop"
    max_votes_per_user: Annotated[int, Field(ge=1)] | None = None
    validation: float = Field(default=0.05, ge=0, lt=1)


class ScoringSpec(Section):
    """Reference pass and distribution matching. Ratios are clamped to [min, max] and then divided by their mean.

    `target`: thumbs-down prompts are matched to the thumbs-up ones (`positive`), or both to their `mixture`.
    `embedding`: the reference model's own prompt states, or the directory of an embedding model. `classifier`: a
    `matching.json` of an earlier run to use instead of fitting. `length_matching`: weights that make labels say nothing
    of length. `num_workers`: a number, or [least, most].
    """

    matching: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    target: Literal["positive", "mixture"] = "positive"
    min_density_ratio: float = Field(default=0.5, gt=0)
    max_density_ratio: float = Field(default=10.0, gt=0)
    embedding: str = "reference"
    classifier: str | None = None
    length_matching: Annotated[Literal["on", "off"], BeforeValidator(_on_or_off)] = "off"
    num_workers: Annotated[int, Field(ge=1)] | tuple[NotNegativeInt, PositiveInt] = 2

    @property
    def workers(self) -> tuple[int, int]:
        """Fewest and most copies of the reference model."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (1, self.num_workers)

    @model_validator(mode="after")
    def _ordered(self) -> ScoringSpec:
        if self.min_density_ratio > self.max_density_ratio:
            raise ValueError("min_density_ratio must not exceed max_density_ratio")
        if self.workers[0] > self.workers[1]:
            raise ValueError("num_workers: [least, most] must be in that order")
        return self


class SourceShiftSpec(Section):
    """A delta for each of the `most` largest sources, and one for the others.

    A source's is shrunk to the one delta as if `shrinkage_rows` votes with the whole log's odds were in it.
    """

    shrinkage_rows: Positive = 32
    most: PositiveInt = 16


class ShiftSpec(Section):
    """The reward shift delta. Half-life in rows; `lagged` = every row of a step sees delta from before the step.

    `start`: a `running.json` of TRL's BCOTrainer to go on from, or none: no rows seen, delta 0. `by_source`: how
    each source of votes has a delta of its own; None: all have one.
    """

    half_life_rows: float = Field(default=512, ge=0)
    timing: Literal["lagged"] = "lagged"
    start: str | None = None
    by_source: SourceShiftSpec | None = None

    @model_validator(mode="after")
    def _readable(self) -> ShiftSpec:
        if self.start is not None and not self.start.endswith(".json"):
            raise ValueError(
                f"start: {self.start} is not a .json file; name the running.json that TRL's BCOTrainer wrote. Its "
                "pickled classifier (clf.pkl) is never read: unpickling runs code. Matching is fitted anew."
            )
        return self


NOISE_TAKERS = ("bco", "bce", "dpo", "bco_pair")
"""Losses that are likelihoods of labels."""

LossName = Literal["bco", "bce", "kto", "apo_zero_unpaired", "sft", "dpo", "bco_pair"]


class ObjectiveSpec(Section):
    """The loss: `bco` and its ablation `bce`, or another on the same data. Class weights `auto`: both classes alike.

    `dpo` and `bco_pair` train on pairs (an up and a down on the same prompt), `sft` on thumbs-up votes alone.
    `sft_weight` adds that much of the SFT loss to any other. `reference`: where the reference's log-probabilities come
    from; `auto` is the column made when scoring, for `kto` (which needs more than that) the model itself.
    `label_noise`: the share of labels that is presumed to be the wrong way round.
    """

    loss: LossName = "bco"
    beta: float = Field(default=0.1, gt=0)
    shift: ShiftSpec = Field(default_factory=ShiftSpec)
    desirable_weight: NotNegative | Auto = "auto"
    undesirable_weight: NotNegative | Auto = "auto"
    sft_weight: NotNegative = 0.0
    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    reference: Literal["auto", "precomputed", "adapter_off", "live"] = "auto"

    @model_validator(mode="after")
    def _fitting(self) -> ObjectiveSpec:
        if self.loss == "kto" and self.reference == "precomputed":
            raise ValueError(
                "reference: kto also looks at completions under prompts they were not given to, which are made while "
                "training; use auto, adapter_off or live"
            )
        if self.label_noise and self.loss not in NOISE_TAKERS:
            raise ValueError(
                f"label_noise: {self.loss} is no likelihood of labels, so it cannot presume some of them wrong "
                f"(kto and apo_zero_unpaired would only be scaled); use {', '.join(NOISE_TAKERS)}, or leave it 0"
            )
        if self.loss != "bco" and self.shift.by_source is not None:
            why = "pairs hold as many ups as downs" if self.loss == "bco_pair" else "this loss has no shift"
            raise ValueError(f"shift.by_source: only loss bco has one ({self.loss}: {why}); leave it out")
        return self


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class OutputSpec(Section):
    """Where everything is written (a directory, s3://, gs://), and the trained model's registry name (None: the job's).

    `trackers` get every step's metrics too, as they come; they need `pip install 'bco-ray[trackers]'`.
    """

    storage: str = "./runs"
    register_as: Name | None = None
    trackers: Annotated[list[TrackerName], BeforeValidator(_one_or_many)] = Field(default_factory=list)


class JobSpec(Section):
    """One training job: what to train, on which votes, how, and where the result goes.

    `evaluation` and `judge`: how `bco evaluate` finds out what came of it. `gate`: what that must be before anybody is
    served by it; registered with the version.
    """

    name: Name
    model: ModelSpec
    data: DataSpec
    rounds: RoundsSpec = Field(default_factory=RoundsSpec)
    scoring: ScoringSpec = Field(default_factory=ScoringSpec)
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    judge: JudgeSpec | None = None
    gate: GateSpec | None = None
    output: OutputSpec = Field(default_factory=OutputSpec)

    @model_validator(mode="after")
    def _shardable(self) -> JobSpec:
        if self.model.quantization != "none" and self.training.deepspeed.zero_stage == 3:
            raise ValueError(
                "model.quantization: ZeRO 3 cannot share out quantised weights; set training.deepspeed.zero_stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _nameable(self) -> JobSpec:
        if self.registry_name == KEPT:
            raise ValueError(f"output.register_as: {KEPT} is a word of model.reference; choose another name")
        return self

    @property
    def registry_name(self) -> str:
        """The name under which versions are registered."""
        return self.output.register_as or self.name
