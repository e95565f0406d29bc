"""A run that goes on from another run's checkpoint: same data, same model, same order of rows, other circumstances."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from bco_ray.config import load_spec
from bco_ray.config.training import CIRCUMSTANCES
from bco_ray.errors import SpecError
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore, DamagedError
from bco_ray.storage.stores import open_store
from bco_ray.training.metrics import MetricsLog


def take_over_checkpoint(job: ResolvedJob) -> None:
    """Put the checkpoint that `training.start` names into this run, with the metrics up to it, if it has none yet.

    Raises SpecError if there is no such checkpoint, or if it belongs to another training.
    """
    start = job.spec.training.start
    mine = CheckpointStore(open_store(job.checkpoint_place))
    if start is None or mine.steps():
        return
    name, _, step = start.rpartition(":")
    source = _source(job, name)
    theirs = CheckpointStore(open_store(source.checkpoint_place))
    if int(step) not in theirs.steps():
        there = ", ".join(map(str, theirs.steps())) or "none"
        raise SpecError(f"training.start: {name} has no checkpoint of step {step}; it has {there}.")
    _copy_metrics(source.run_directory, job.run_directory, int(step))
    _copy(theirs, mine, int(step), job.checkpoint_identity)


def _source(job: ResolvedJob, name: str) -> ResolvedJob:
    """The other run, as it resolves now. Raises SpecError if that, or this job, is another training than it was."""
    written = job.storage / "runs" / name / "spec.resolved.yaml"
    if not written.is_file():
        raise SpecError(f"training.start: {name}: no such run in {job.storage}.")
    source = resolve(load_spec(written))
    if source.run_directory.name != name:
        raise SpecError(f"training.start: {name}: its data or its model is not what it was; start anew.")
    if different := sorted(_differences(source.run_identity, job.run_identity)):
        raise SpecError(f"training.start: {name}: was made with another {', '.join(different)}; start anew.")
    return source


def _differences(theirs: dict[str, Any], mine: dict[str, Any]) -> set[str]:
    apart = {key for key in mine if key != "training" and mine[key] != theirs[key]}
    training = {key: value for key, value in mine["training"].items() if key not in {*CIRCUMSTANCES, "start"}}
    return apart | {f"training.{key}" for key, value in training.items() if theirs["training"].get(key) != value}


def _copy(source: CheckpointStore, target: CheckpointStore, step: int, identity: dict[str, Any]) -> None:
    try:
        manifest = source.manifest(step)
        for shard in manifest.shards:
            with source.verified(manifest, shard) as path:
                target.store.put(shard, partial(_copy_file, path))
    except DamagedError as error:
        raise SpecError(f"training.start: {error} Take another step.") from None
    target.commit(manifest.model_copy(update={"identity": identity}))


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _copy_metrics(source: Path, target: Path, step: int) -> None:
    """At once: who watches this run must not see steps that it has not done."""
    rows = [row for row in MetricsLog(source / "metrics.jsonl").read() if row["step"] < step]
    files.write_bytes(target / "metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
