"""What a request for a job may say, field by field, and the spec it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bco_ray.config.deepspeed_json import WRITING
from bco_ray.config.load import parse_spec
from bco_ray.config.section import Auto, Name, Positive
from bco_ray.config.spec import JobSpec, LossName
from bco_ray.config.training import CIRCUMSTANCES
from bco_ray.control.budget import Budget
from bco_ray.errors import SpecError
from bco_ray.storage.feedback_rows import require_storable
from bco_ray.web.errors import unsupported

Json = dict[str, Any]
Text = Annotated[str, Field(min_length=1, max_length=4096)]

Priority = Annotated[int, Field(ge=-100, le=100)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]

_BY_HAND = "is for bco evaluate, where its files and keys are"
CLOSED = {"name": "is the job's id", "output": "is the server's", "evaluation": _BY_HAND, "judge": _BY_HAND}
"""Of the spec's sections those that a request may not set."""

ELSEWHERE = {("model", "base"): "model", ("data", "feedback"): "training_file", ("training", "start"): None}
"""And of their fields those that a request says by another name, or by a retry."""

METHODS: dict[str, LossName] = {
    "bco": "bco", "bce": "bce", "kto": "kto", "apo_zero_unpaired": "apo_zero_unpaired", "dpo": "dpo",
    "bco_pair": "bco_pair", "supervised": "sft", "sft": "sft",
}  # fmt: skip


class Hyperparameters(BaseModel):
    """OpenAI's names, and ours for what they lack. `auto` and what is left out: the spec's defaults.

    `learning_rate_multiplier` is times the rate, ours or that of `auto`.
    """

    model_config = ConfigDict(extra="forbid")

    n_epochs: Annotated[int, Field(ge=1, le=100)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=2, le=1 << 20)] | Auto = "auto"
    learning_rate: Positive | Auto = "auto"
    learning_rate_multiplier: Positive | Auto = "auto"
    beta: Positive | Auto = "auto"


class _Settings(BaseModel):
    """Of a method."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters | None = None


class Method(BaseModel):
    """`{"type": "bco", "bco": {"hyperparameters": {...}}}`: under the method's own name, as OpenAI has it."""

    model_config = ConfigDict(extra="allow")

    type: str

    @model_validator(mode="after")
    def _known(self) -> Method:
        if other := sorted((self.model_extra or {}).keys() - {self.type}):
            raise unsupported(f"method.{other[0]}", f"method.{other[0]}: the settings of method.type {self.type[:60]} "
                              "are under its own name.")  # fmt: skip
        if self.type not in METHODS:
            raise unsupported("method", f"method.type: {self.type[:60]}: there are {', '.join(METHODS)}.")
        self.hyperparameters()
        return self

    def hyperparameters(self) -> Hyperparameters:
        """Raises ValidationError."""
        own = (self.model_extra or {}).get(self.type)
        return _Settings.model_validate({} if own is None else own).hyperparameters or Hyperparameters()


class JobRequest(BaseModel):
    """`training_file`: a file's id, a URI, or `feedback` / `feedback:<n>`. `spec`: sections of a spec for all else.

    `priority`: higher comes first. `budget`: what it may use. Unknown fields are refused: a job is dear, and a typing
    error would be one.
    """

    model_config = ConfigDict(extra="forbid")

    model: Text
    training_file: Text
    validation_file: Text | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Name | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: Metadata | None = None
    integrations: list[Any] | None = None
    spec: Json | None = None
    priority: Priority = 0
    budget: Budget | None = None

    @model_validator(mode="after")
    def _implemented(self) -> JobRequest:
        if self.validation_file is not None:
            raise unsupported("validation_file", "validation_file: votes are held out of training_file by prompt.")
        if self.integrations:
            raise unsupported("integrations", "integrations: set output.trackers where the server runs.")
        _refuse_closed(self.spec or {})
        require_storable(self)
        return self

    def asked(self) -> Hyperparameters:
        """Wherever they were said."""
        own = self.method.hyperparameters() if self.method else Hyperparameters()
        old = self.hyperparameters or Hyperparameters()
        said = {**old.model_dump(exclude_unset=True), **own.model_dump(exclude_unset=True)}
        return Hyperparameters.model_validate(said)


class RetryRequest(BaseModel):
    """Do a job's training again from a checkpoint, as a new job with the same data, model and batches.

    `step`: of one of its checkpoints; None: the newest, or from the beginning if there is none. `spec.training` may
    change what a checkpoint does not depend on (`config.training.CIRCUMSTANCES`). Without `budget` it
    may use as much as the old job might, once more; null: as much as it likes.
    """

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=1)] | None = None
    spec: dict[Literal["training"], Json] | None = None
    metadata: Metadata | None = None
    priority: Priority = 0
    budget: Budget | None = None

    @model_validator(mode="after")
    def _possible(self) -> RetryRequest:
        _refuse_closed(self.spec or {})
        require_storable(self)
        for name in (self.spec or {}).get("training", {}):
            if name not in CIRCUMSTANCES:
                raise unsupported(
                    f"spec.training.{name}", f"spec.training.{name}: a checkpoint depends on it; ask for a new job."
                )
        return self


def spec_again(before: Json, job_id: str, request: RetryRequest, start: str | None) -> JobSpec:
    """The spec of a job that does another's training again. `before`: that one's, resolved if it was.

    `start`: the checkpoint, as `training.start` has it. Raises SpecError naming the field.
    """
    changes = (request.spec or {}).get("training", {})
    training = {**before["training"], **changes, "start": start or before["training"].get("start")}
    return parse_spec({**before, "name": job_id, "training": training}, where="the request")


def spec_of(request: JobRequest, job_id: str, storage: str, *, log: str, register_as: str) -> JobSpec:
    """The job's spec: what the request says over the spec's defaults. `log`: what `training_file` stands for.

    Raises SpecError naming the field.
    """
    asked, sections = request.asked(), {name: dict(_section(name, s)) for name, s in (request.spec or {}).items()}
    said: dict[str, Json] = {
        "model": {"base": request.model},
        "data": {"feedback": [log]},
        "objective": _set(loss=METHODS[request.method.type] if request.method else None, beta=asked.beta),
        "training": _set(
            num_train_epochs=asked.n_epochs, rows_per_step=asked.batch_size, learning_rate=asked.learning_rate,
            learning_rate_multiplier=asked.learning_rate_multiplier, seed=request.seed,
        ),
    }  # fmt: skip
    for name, values in said.items():
        sections[name] = {**sections.get(name, {}), **values}
    output = {"storage": storage, "register_as": register_as}
    return parse_spec({"name": job_id, **sections, "output": output}, where="the request")


def param_of(field: str | None) -> str | None:
    """A field of the spec, as a request says it."""
    if field is None or field in JobRequest.model_fields:
        return field
    if field.startswith("data.feedback"):
        return "training_file"
    return {"model.base": "model", "output.register_as": "suffix"}.get(field, f"spec.{field}")


def _refuse_closed(spec: Mapping[Any, Any]) -> None:
    """Raises ApiError for what is not a request's to say."""
    if not _is_json(spec):
        raise unsupported("spec", "spec: NaN and Infinity are no numbers.")
    for name, why in CLOSED.items():
        if name in spec:
            raise unsupported(f"spec.{name}", f"spec.{name}: {why}.")
    for (section, field), other in ELSEWHERE.items():
        if other and isinstance(spec.get(section), dict) and field in spec[section]:
            raise unsupported(f"spec.{section}.{field}", f"spec.{section}.{field}: is the request's {other}.")
    training = spec.get("training")
    if isinstance(training, dict):
        if training.get("start") is not None:
            raise unsupported(
                "spec.training.start", "spec.training.start: retry the job whose checkpoint it is instead."
            )
        _refuse_files(training.get("deepspeed"))


def _is_json(value: Any) -> bool:
    """NaN and Infinity are none, though Python reads them."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _refuse_files(deepspeed: Any) -> None:
    """Raises ApiError for DeepSpeed's JSON as a file of the server, and for what in it names files to write."""
    config = deepspeed.get("config", deepspeed) if isinstance(deepspeed, dict) else deepspeed
    field = "spec.training.deepspeed"
    if isinstance(config, str):
        raise unsupported(field, f"{field}: no file of the server is read for a request; send the JSON.")
    for name in sorted(_names_in(config) & {*WRITING, "nvme_path"}):
        raise unsupported(f"{field}.{name}", f"{field}.{name}: it may write where it likes; ask who runs the server.")


def _names_in(value: Any) -> set[str]:
    """All keys of a JSON value, at any depth."""
    if isinstance(value, list):
        return set().union(*map(_names_in, value))
    return set(value).union(*map(_names_in, value.values())) if isinstance(value, dict) else set()


def _section(name: str, values: Any) -> Json:
    if not isinstance(values, dict):
        raise SpecError(f"spec.{name}: a section is an object.")
    return values


def _set(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value not in (None, "auto")}
