"""`bco run`, `bco score`, `bco train`: a spec file and overrides to a pipeline call and a result to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bco_ray.config import load_spec
from bco_ray.pipeline import run as pipeline
from bco_ray.pipeline.cluster import cluster_for
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.evaluations import PAGE
from bco_ray.storage.registry import Registry
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases, logger


def run(spec: Path, overrides: list[str]) -> dict[str, Any]:
    """All phases."""
    job, phases = resolve_spec(spec, overrides), Phases()
    with cluster_for(job):
        outcome = pipeline.run_job(job, phases)
    return {
        "model": outcome.version.reference,
        "directory": str(outcome.version.directory),
        **_votes(outcome.scored),
        "evaluation": outcome.evaluation,
        "run": str(job.run_directory),
        "curves": str(job.run_directory / "curves.png"),
        "quarantine": [str(directory / "quarantine") for directory in (job.log.directory, job.scored_directory)],
        "seconds": phases.seconds,
        "next": f"bco models promote {outcome.version.reference} --storage {job.storage}",
    }


def score(spec: Path, overrides: list[str]) -> dict[str, Any]:
    """Feedback log to scored shards."""
    job = resolve_spec(spec, overrides)
    with cluster_for(job):
        scored = pipeline.score_job(job, Phases())
    return {"scored": str(job.scored_directory), **_votes(scored)}


def train(spec: Path, overrides: list[str], *, resume: bool) -> dict[str, Any]:
    """Scored shards to a model directory."""
    job = resolve_spec(spec, overrides)
    pipeline.require_fresh_or_resume(job, resume=resume)
    with cluster_for(job):
        pipeline.score_job(job, Phases())
        pipeline.train_job(job, Phases())
    return {"model": str(job.run_directory / "model"), "run": str(job.run_directory)}


def evaluate(spec: Path, overrides: list[str], model: str, against: list[str]) -> dict[str, Any]:
    """A registered version on a spec's held-out votes."""
    from bco_ray.pipeline.evaluate import evaluate_version

    job, phases = resolve_spec(spec, overrides), Phases()
    registry = Registry(job.storage)
    version = registry.resolve(model)
    with cluster_for(job):
        place = evaluate_version(job, pipeline.score_job(job, phases), version, against, phases)
    found = registry.evaluations(version.name).get(version.version, int(place.name))
    reasons = registry.gates(version.name).refusals(version.version)
    return {
        "model": version.reference,
        "directory": str(place),
        "report": str(place / PAGE),
        "gate": "none" if reasons is None else reasons or "passes",
        "evaluation": found.model_dump(mode="json"),
    }


def resolve_spec(path: Path, overrides: list[str]) -> ResolvedJob:
    """The job a spec file describes; says what `auto` became."""
    spec = load_spec(path, overrides)
    job = resolve(spec)
    training = job.spec.training
    logger.info(
        "%s: learning_rate %g, %s, max_tokens_per_micro_batch %s, %s workers",
        job.run_directory.name,
        training.learning_rate,
        training.precision,
        training.max_tokens_per_micro_batch,
        " to ".join(map(str, sorted(set(training.workers)))),
    )
    return job


def _votes(scored: ScoredManifest) -> dict[str, Any]:
    return {
        "votes_read": scored.read,
        "votes_kept": scored.kept,
        "drops": scored.drops,
        "matching": scored.matching["reason"],
        "off_policy": scored.mixture.get("off_policy"),
        "older_votes": scored.mixture.get("older_votes", 0),
    }
