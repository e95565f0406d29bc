"""Jobs in the words of OpenAI's fine-tuning API, field by field, and ours beside them."""

from __future__ import annotations

from typing import Any

from bco_ray.control.budget import Spent
from bco_ray.control.checkpoints import Checkpoint
from bco_ray.control.files import is_file_id
from bco_ray.control.job import Job, JobEvent
from bco_ray.control.states import ENDED

Json = dict[str, Any]

_DETAILS = ("phase", "percent", "eta_seconds", "step", "total_steps", "waiting_for", "checkpoint_step", "problem")


def job(one: Job) -> Json:
    """`status_details`, `spec`, `attempt`, `evaluation`, `budget`, `spent` and `retried_from` are ours."""
    resolved, outcome, request = one.details.get("spec") or one.spec, one.outcome or {}, one.request
    return {
        "id": one.id,
        "object": "fine_tuning.job",
        "created_at": int(one.created_at),
        "model": request["model"],
        "organization_id": one.project,
        "status": one.status,
        "training_file": request["training_file"],
        "validation_file": None,
        "result_files": [],
        "seed": resolved["training"]["seed"],
        "hyperparameters": _hyperparameters(one, resolved),
        "method": _method(one, resolved),
        "metadata": one.metadata,
        "integrations": [],
        "trained_tokens": outcome.get("trained_tokens"),
        "fine_tuned_model": outcome.get("model"),
        "user_provided_suffix": request.get("suffix"),
        "finished_at": None if one.finished_at is None else int(one.finished_at),
        "estimated_finish": _estimated_finish(one),
        "error": one.error,
        "status_details": {**{name: one.details.get(name) for name in _DETAILS}, "on_cluster": one.holds_cluster},
        "started_at": None if one.started_at is None else int(one.started_at),
        "attempt": one.attempt,
        "priority": one.priority,
        "spec": _shown(resolved, request["training_file"]),
        "evaluation": outcome.get("evaluation"),
        "budget": request.get("budget"),
        "spent": {name: round(amount, 4) for name, amount in Spent.of(one.details).amounts.items()},
        "retried_from": request.get("retry"),
    }


def _hyperparameters(one: Job, spec: Json) -> Json:
    """`learning_rate` is what is used, its multiplier among it once the spec is resolved."""
    training = spec["training"]
    return {
        "n_epochs": training["num_train_epochs"],
        "batch_size": training["rows_per_step"],
        "learning_rate": training["learning_rate"],
        "learning_rate_multiplier": one.spec["training"].get("learning_rate_multiplier", 1),
        "beta": spec["objective"]["beta"],
    }


def _method(one: Job, spec: Json) -> Json:
    kind = (one.request.get("method") or {}).get("type") or spec["objective"]["loss"]
    return {"type": kind, kind: {"hyperparameters": _hyperparameters(one, spec)}}


def _shown(spec: Json, training_file: str) -> Json:
    """Without the server's own directories: an upload is its id, and where results go is the server's business."""
    uploaded = {"data": {**spec["data"], "feedback": [training_file]}} if is_file_id(training_file) else {}
    output = {name: value for name, value in spec["output"].items() if name != "storage"}
    return {**spec, **uploaded, "output": output}


def _estimated_finish(one: Job) -> int | None:
    """Of the training phase; what comes after it takes a moment."""
    eta, at = one.details.get("eta_seconds"), one.details.get("at")
    return None if one.status in ENDED or eta is None or at is None else int(at + eta)


def event(one: JobEvent) -> Json:
    """With `data` of a step for type `metrics`."""
    return {
        "id": one.id,
        "object": "fine_tuning.job.event",
        "created_at": int(one.created_at),
        "level": one.level,
        "message": one.message,
        "type": one.type,
        "data": one.data,
    }


def checkpoint(one: Checkpoint, job_id: str) -> Json:
    """`metrics` under OpenAI's names where they have one."""
    metrics = {"step": one.step, "train_loss": one.metrics.get("loss"), **one.metrics}
    return {
        "id": one.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(one.created_at),
        "fine_tuned_model_checkpoint": f"{job_id}:step-{one.step}",
        "fine_tuning_job_id": job_id,
        "step_number": one.step,
        "metrics": metrics,
    }
