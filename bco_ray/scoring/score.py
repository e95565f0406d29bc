"""The scoring run: records -> tokens -> reference pass -> distribution matching -> scored shards with a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy

from bco_ray.errors import DataError, StorageError
from bco_ray.scoring.matching import DensityReport, Matching, Mode, fit_matching
from bco_ray.scoring.reference import ReferenceModel, ReferenceScorer
from bco_ray.scoring.shards import ShardWriter, WeightStage
from bco_ray.scoring.tokens import TokenizeStage
from bco_ray.storage import files
from bco_ray.storage.quarantine import Quarantine, Tally
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored, load_scored

MOST_UNKNOWN_LABELS = 0.1
"""More than this share of rows with a label outside the map is a wrong map, not dirt."""

Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class ScoringJob:
    """What to score with, and where to. `parse_quarantine` is where the records' own stage keeps its books."""

    directory: Path
    inputs: dict[str, Any]
    file_order: tuple[str, ...]
    parse_quarantine: Path
    model: ReferenceModel
    max_length: int
    validation: float
    matching: Mode
    min_density_ratio: float
    max_density_ratio: float
    num_workers: int
    num_gpus: float


def score(records: ray.data.Dataset, job: ScoringJob, progress: Progress) -> ScoredManifest:
    """Score into `job.directory`, or return what is already there. Raises DataError if nothing useful is left."""
    if files.is_committed(job.directory):
        return load_scored(job.directory)
    reference = job.directory / "reference"
    shards = _reference_pass(records, job, reference, progress)
    tally = _balance_books(job, sum(shard.rows for shard in shards))
    _refuse_unusable(job, tally)
    _refuse_one_class(shards, tally)
    progress(tally.kept, tally.kept, "fitting the distribution-matching classifier")
    matching, report, mean = _fit_remotely([reference / shard.file for shard in shards], job)
    _weigh(shards, WeightStage(reference, job.directory, matching, mean))
    shutil.rmtree(reference)
    manifest = ScoredManifest(
        inputs=job.inputs, read=tally.read, kept=tally.kept, drops=tally.drops, matching=report.as_json(), shards=shards
    )
    commit_scored(job.directory, manifest)
    return manifest


def _reference_pass(records: ray.data.Dataset, job: ScoringJob, target: Path, progress: Progress) -> list[ShardFacts]:
    """Stream everything through the model; only the facts of each shard come back. Sorted by name = log order."""
    for leftover in (target, job.directory / "quarantine", job.parse_quarantine):
        shutil.rmtree(leftover, ignore_errors=True)
    tokenize = TokenizeStage(
        job.model.directory, job.model.revision, job.max_length, job.validation, job.directory / "quarantine"
    )
    written = (
        records.map_batches(tokenize, batch_format="pyarrow", batch_size=None)
        .map_batches(
            ReferenceScorer,
            fn_constructor_args=(job.model,),
            compute=ActorPoolStrategy(min_size=1, max_size=job.num_workers),
            num_gpus=job.num_gpus,
            batch_format="pyarrow",
            batch_size=None,
        )
        .map_batches(ShardWriter(target, job.file_order), batch_format="pyarrow", batch_size=None)
    )
    shards: list[ShardFacts] = []
    for row in written.iter_rows():
        shards.append(ShardFacts.model_validate(row))
        rows = sum(shard.rows for shard in shards)
        progress(rows, None, f"{rows} rows scored")
    return sorted(shards, key=lambda shard: shard.file)


def _balance_books(job: ScoringJob, scored_rows: int) -> Tally:
    """read = kept + drops, checked stage against stage. Raises StorageError if a row went missing or came twice."""
    parsed = Quarantine(job.parse_quarantine).tally()
    tokenized = Quarantine(job.directory / "quarantine").tally()
    if parsed.kept != tokenized.read or tokenized.kept != scored_rows:
        raise StorageError(
            f"{job.directory}: rows do not add up: {parsed.read} read, {parsed.kept} parsed, "
            f"{tokenized.read} tokenized of which {tokenized.kept} kept, {scored_rows} scored. Score again."
        )
    reasons = sorted({*parsed.drops, *tokenized.drops})
    drops = {reason: parsed.drops.get(reason, 0) + tokenized.drops.get(reason, 0) for reason in reasons}
    return Tally(parsed.read, drops)


def _refuse_unusable(job: ScoringJob, tally: Tally) -> None:
    unknown = tally.drops.get("unknown_label", 0)
    if tally.read and unknown > MOST_UNKNOWN_LABELS * tally.read:
        examples = Quarantine(job.parse_quarantine).examples(1000)
        detail = next((row["detail"] for row in examples if row["reason"] == "unknown_label"), "")
        raise DataError(f"{unknown} of {tally.read} rows have an unknown label: {detail}. Add it to data.label_map.")
    if tally.kept == 0:
        raise DataError(f"no row of {tally.read} can be used: {_reasons(tally)}. See {job.parse_quarantine.parent}.")


def _refuse_one_class(shards: list[ShardFacts], tally: Tally) -> None:
    chosen, rejected = sum(s.train_chosen for s in shards), sum(s.train_rejected for s in shards)
    if min(chosen, rejected) == 0:
        raise DataError(
            f"the log has {chosen} thumbs-up and {rejected} thumbs-down rows to train on ({_reasons(tally)}); BCO "
            "needs both. Check data.label_map, or collect votes of the other kind."
        )


def _fit_remotely(shards: list[Path], job: ScoringJob) -> tuple[Matching | None, DensityReport, float]:
    """On a worker: the driver may be a laptop or the head node."""
    fit = ray.remote(num_cpus=1)(fit_matching)
    bounds = {"min_density_ratio": job.min_density_ratio, "max_density_ratio": job.max_density_ratio}
    result: tuple[Matching | None, DensityReport, float] = ray.get(fit.remote(shards, mode=job.matching, **bounds))
    return result


def _weigh(shards: list[ShardFacts], stage: WeightStage) -> None:
    items = ray.data.from_items([{"file": shard.file} for shard in shards], override_num_blocks=len(shards))
    items.map(stage).materialize()


def _reasons(tally: Tally) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in tally.drops.items()) or "none dropped"
