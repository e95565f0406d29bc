"""What the routes of files, jobs and webhooks reply, field by field (see `web.replies`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bco_ray.config.section import Auto
from bco_ray.control.budget import Budget
from bco_ray.control.states import Status
from bco_ray.control.webhooks import Event
from bco_ray.web.replies import Reply

UnixSeconds = int


class File(Reply):
    """An upload."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: UnixSeconds
    filename: str
    purpose: str
    status: str
    expires_at: None
    status_details: str | None


class UsedHyperparameters(Reply):
    """`auto` until the job has begun."""

    n_epochs: float
    batch_size: int
    learning_rate: float | Auto
    learning_rate_multiplier: float
    beta: float | Auto


class JobError(Reply):
    """Why it failed."""

    code: str
    message: str
    param: str | None


class StatusDetails(Reply):
    """How far the job is. Null: not known, or not yet."""

    phase: str | None
    percent: float | None
    eta_seconds: float | None
    step: int | None
    total_steps: int | None
    waiting_for: str | None
    checkpoint_step: int | None
    problem: str | None
    on_cluster: bool = Field(description="Its processes may be there, whatever its status says that is wanted.")


class Spent(Reply):
    """What a job has used."""

    hours: float
    gpu_hours: float
    tokens: int


class RetriedFrom(Reply):
    """The job whose training is done again. `step`: of its checkpoint; null: from the beginning."""

    job: str
    step: int | None


class FineTuningJob(Reply):
    """OpenAI's fields; `estimated_finish` and all from `status_details` on are ours."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: UnixSeconds
    model: str
    organization_id: str = Field(description="The key's project.")
    status: Status
    training_file: str
    validation_file: None
    result_files: list[str]
    seed: int
    hyperparameters: UsedHyperparameters
    method: dict[str, Any] = Field(description="`type`, and under its name its `hyperparameters`.")
    metadata: dict[str, str]
    integrations: list[Any]
    trained_tokens: int | None
    fine_tuned_model: str | None = Field(description="The registered version, `name/3`.")
    user_provided_suffix: str | None
    finished_at: UnixSeconds | None
    estimated_finish: UnixSeconds | None = Field(description="Of the training phase.")
    error: JobError | None
    status_details: StatusDetails
    started_at: UnixSeconds | None
    attempt: int = Field(description="Counts from 1 once it has been started.")
    priority: int
    spec: dict[str, Any] = Field(description="docs/spec.md; every `auto` is replaced once the job has begun.")
    evaluation: dict[str, Any] | None
    budget: Budget | None
    spent: Spent
    retried_from: RetriedFrom | None


class FineTuningEstimate(Reply):
    """What a job would take. Null: not known here."""

    object: Literal["fine_tuning.job.estimate"]
    rows: int
    usable_rows: int
    label_rate: float | None
    exact: bool = Field(description="Counted, not estimated from a sample.")
    tokens_per_row: float | None
    tokens_per_epoch: int
    trained_tokens: int
    steps: int
    parameters: int
    trained_parameters: int
    memory: dict[str, int] = Field(description="Bytes per worker, by item, and their `total`.")
    workers: int
    seconds: float | None
    gpu_hours: float | None
    basis: str = Field(description="Where `seconds` comes from.")
    warnings: list[str]


class FineTuningSchema(Reply):
    """JSON schemas: of a request's body, and of the sections of its `spec`. `methods`: what `method.type` may be."""

    object: Literal["fine_tuning.schema"]
    methods: list[str]
    request: dict[str, Any]
    spec: dict[str, Any]


class FineTuningEvent(Reply):
    """What happened. Of type `metrics`: `data` of a step."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: UnixSeconds
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class FineTuningData(Reply):
    """What the log of a job turned out to be. `read = kept` and all `drops`. `answers`: of a log that has them apart.

    `matching`: how far the prompts of ups and downs differ, `mixture`: whose answers the votes are on; null before the
    job has succeeded.
    """

    object: Literal["fine_tuning.job.data"]
    read: int
    kept: int
    drops: dict[str, int]
    answers: dict[str, int]
    statistics: dict[str, Any]
    matching: dict[str, Any] | None
    mixture: dict[str, Any] | None


class RefusedRow(Reply):
    """A row that is not trained on, as it was read; `position`: a row's number, or its first byte. `truncated`: it goes
    on after `raw`.
    """

    id: str
    object: Literal["quarantine.row"]
    stage: str
    reason: str
    detail: str | None
    file: str
    position: int
    raw: str
    truncated: bool


class FineTuningCheckpoint(Reply):
    """`metrics`: means since the one before."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: UnixSeconds
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float | None]


class AuditEntry(Reply):
    """Who did what. `facts`: small ones, no secrets and no texts."""

    id: str
    object: Literal["audit.entry"]
    created_at: UnixSeconds
    project: str
    actor: str = Field(description="A key's id, or who else it was.")
    action: str
    target: str
    facts: dict[str, Any]


class Webhook(Reply):
    """Where a project wants to be told, and of what."""

    id: str
    object: Literal["webhook"]
    created_at: UnixSeconds
    url: str
    events: list[Event]


class CreatedWebhook(Webhook):
    """With the secret that signs what is sent. It is shown this once."""

    secret: str


class Delivery(Reply):
    """One event on its way to one webhook."""

    id: str
    object: Literal["webhook.delivery"]
    webhook_id: str
    created_at: UnixSeconds
    event: Event
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: UnixSeconds | None
    delivered_at: UnixSeconds | None
    last_status: int | None
    last_error: str | None
