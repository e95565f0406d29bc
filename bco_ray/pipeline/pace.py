"""How fast training has been here before: what a worker achieved in the runs of one storage directory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.config import load_spec
from bco_ray.errors import ModelError, SpecError
from bco_ray.models import loading
from bco_ray.storage import files
from bco_ray.storage.run_journal import RunJournal
from bco_ray.training.metrics import MetricsLog

FORWARD, TRAINING = 2, 6
"""Floating-point operations per weight and token: of a forward, and with the backward (2001.08361, 2.1)."""

MOST_RUNS = 20
"""The newest finished runs are looked into."""


@dataclass(frozen=True)
class Pace:
    """What one worker does in a second, at TRAINING operations per weight and token; `basis`: how that is known."""

    flops_per_second: float
    basis: str


@dataclass(frozen=True)
class _Past:
    run: Path
    adapter: bool
    weights: int


def pace_here(storage: Path, *, on_gpu: bool, weights: int, adapter: bool) -> Pace | None:
    """From the run on the same kind of device whose model is nearest in size; then the one trained alike, the newest.

    None if no training on such a device was finished here.
    """
    past = [found for run in _finished(storage) if (found := _past(run, on_gpu=on_gpu))]
    past.sort(key=lambda one: (abs(math.log(one.weights / weights)), one.adapter != adapter))
    for one in past:
        rows, events = MetricsLog(one.run / "metrics.jsonl").read(), RunJournal(one.run).read()
        if speed := tokens_per_worker_second(rows, events):
            flops = TRAINING * one.weights * speed
            device = "a GPU" if on_gpu else "CPUs"
            return Pace(
                flops, f"an earlier run here: {flops:.3g} FLOP/s per worker on {device}, {one.weights:,} weights"
            )
    return None


def tokens_per_worker_second(rows: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> float | None:
    """Over all steps of `metrics.jsonl`; how many workers took each, the journal's `training` events say."""
    begun = [(event["step"], event["workers"]) for event in events if event["event"] == "training"]
    tokens = worker_seconds = 0.0
    for row in rows:
        workers = next((count for step, count in reversed(begun) if step <= row["step"]), None)
        if workers is not None and row.get("seconds"):
            tokens += row["tokens"]
            worker_seconds += workers * row["seconds"]
    return tokens / worker_seconds if worker_seconds else None


def _finished(storage: Path) -> Iterator[Path]:
    """The newest first."""
    runs = (storage / "runs").iterdir() if (storage / "runs").is_dir() else ()
    finished = [run for run in runs if files.is_there(run / "model")]
    newest = sorted(finished, key=lambda run: -files.made_at(run / "model"))
    return iter(newest[:MOST_RUNS])


def _past(run: Path, *, on_gpu: bool) -> _Past | None:
    """What was trained there; None if on another kind of device, or if that cannot be told any more."""
    try:
        spec = load_spec(run / "spec.resolved.yaml")
        if (spec.training.resources_per_worker.get("GPU", 0) > 0) is not on_gpu:
            return None
        return _Past(run, spec.model.adapter is not None, loading.parameter_count(run / "model"))
    except (SpecError, ModelError):
        return None
