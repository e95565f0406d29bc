"""The scoring run: records -> tokens -> reference pass -> distribution matching -> scored shards with a manifest."""

from __future__ import annotations

import shutil
from collections import Counter
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

    @property
    def books(self) -> tuple[Path, Path, Path]:
        """Where parsing, tokenizing and the reference pass account for their rows, in that order."""
        return self.parse_quarantine, self.directory / "quarantine-tokenize", self.directory / "quarantine-reference"


def score(records: ray.data.Dataset, job: ScoringJob, progress: Progress) -> ScoredManifest:
    """Score into `job.directory`, or return what is already there. Raises DataError if nothing useful is left."""
    with files.locked(job.directory / ".lock"):  # another run on the same data may be at it: then its work is ours
        return load_scored(job.directory) if files.is_committed(job.directory) else _score(records, job, progress)


def _score(records: ray.data.Dataset, job: ScoringJob, progress: Progress) -> ScoredManifest:
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
    for leftover in (target, *job.books):
        shutil.rmtree(leftover, ignore_errors=True)
    for half_done in job.directory.glob("part-*.parquet"):
        half_done.unlink()
    tokenize = TokenizeStage(job.model.directory, job.max_length, job.validation, job.books[1])
    written = (
        records.map_batches(tokenize, batch_format="pyarrow", batch_size=None)
        .map_batches(
            ReferenceScorer,
            fn_constructor_args=(job.model, job.books[2]),
            compute=ActorPoolStrategy(min_size=1, max_size=job.num_workers),
            num_gpus=job.num_gpus,
            batch_format="pyarrow",
            batch_size=None,
        )
        .map_batches(ShardWriter(target, job.file_order), batch_format="pyarrow", batch_size=None)
    )
    shards: list[ShardFacts] = []
    rows = 0
    for row in written.iter_rows():
        shards.append(ShardFacts.model_validate(row))
        rows += shards[-1].rows
        progress(rows, None, f"{rows} rows scored")
    return sorted(shards, key=lambda shard: shard.file)


def _balance_books(job: ScoringJob, scored_rows: int) -> Tally:
    """read = kept + drops, checked stage against stage. Raises StorageError if a row went missing or came twice."""
    stages = [Quarantine(directory).tally() for directory in job.books]
    handed_on = [stage.kept for stage in stages]
    if handed_on != [*(stage.read for stage in stages[1:]), scored_rows]:
        raise StorageError(
            f"{job.directory}: rows do not add up: {stages[0].read} read; the stages read "
            f"{[stage.read for stage in stages]} and kept {handed_on}; {scored_rows} scored. Score again."
        )
    drops = Counter[str]()
    for stage in stages:
        drops.update(stage.drops)
    return Tally(stages[0].read, dict(sorted(drops.items())))


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
