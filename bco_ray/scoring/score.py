"""The scoring run: settled records -> mixture -> tokens -> reference pass -> matching -> scored shards, manifest.

Work is cut by the parts of the records, and a finished part stays finished: an interrupted run does the others only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy

from bco_ray.errors import DataError, StorageError
from bco_ray.scoring.length_matching import match_lengths
from bco_ray.scoring.mixing import Mixing, Mixture
from bco_ray.scoring.mixing_passes import mix
from bco_ray.scoring.parts import Caches, PartDone, PrepareStage, Workplace
from bco_ray.scoring.reference import BY_REFERENCE, ReferenceModel, ReferenceScorer
from bco_ray.scoring.shards import WeightStage, prompts_name
from bco_ray.scoring.spread import each_of, in_a_task
from bco_ray.scoring.tokens import Tokenizing
from bco_ray.scoring.weighing import Weighing, save_matching
from bco_ray.storage import files
from bco_ray.storage.records import RecordsManifest, load_records
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored, load_scored

Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class ScoringJob:
    """What to score with, and where to. `directory` is addressed by `inputs`; `caches` by the model that fills them.

    `tokenizer`: the model directory whose tokenizer and template make tokens of the records.
    `num_workers`: fewest and most actors of the reference pass. There are none while nothing is to be computed.
    `ups_suffice`: the training it is for needs no thumbs-down; no result depends on it.
    """

    directory: Path
    inputs: dict[str, Any]
    caches: Caches
    model: ReferenceModel
    tokenizer: str
    max_length: int
    validation: float
    weighing: Weighing
    num_workers: tuple[int, int]
    num_gpus: float
    ups_suffice: bool = False
    length_matching: bool = False
    mixing: Mixing = field(default_factory=Mixing)

    @property
    def workplace(self) -> Workplace:
        """Where parts are on their way."""
        return Workplace(self.directory, files.digest(self.inputs))

    @property
    def tokenizing(self) -> Tokenizing:
        """The first stage."""
        with_text = self.model.embedding != BY_REFERENCE
        return Tokenizing(self.tokenizer, self.max_length, self.validation, with_text)


def score(records: Path, job: ScoringJob, progress: Progress) -> ScoredManifest:
    """Score a finished directory of records into `job.directory`, or return what is already there.

    Raises DataError if nothing useful is left, StorageError if a row went missing.
    """
    with files.locked(job.directory / ".lock"):  # another run on the same data may be at it: then its work is ours
        return load_scored(job.directory) if files.is_committed(job.directory) else _score(records, job, progress)


def _score(records: Path, job: ScoringJob, progress: Progress) -> ScoredManifest:
    log = load_records(records)
    mixture, mixed = in_a_task(mix, job.mixing, [records / part.file for part in log.parts], job.validation)
    marks = _reference_pass(records, log, job, mixture, progress)
    drops = _balance_books(job, log, marks)
    shards = [mark.facts for mark in marks if mark.facts.rows]
    kept = sum(shard.rows for shard in shards)
    if not shards:
        raise DataError(f"no row of {log.read} can be used: {_reasons(drops)}. See {records / 'quarantine'}.")
    require_classes(shards, drops, ups_suffice=job.ups_suffice)
    progress(log.kept, log.kept, "matching the prompts of thumbs-up and thumbs-down")
    matching, lengths, written = _weigh(shards, job)
    _clear(job)
    manifest = ScoredManifest(
        inputs=job.inputs,
        records=records.name,
        read=log.read,
        kept=kept,
        drops=drops,
        computed_rows=sum(mark.computed_rows for mark in marks),
        cached_rows=sum(mark.cached_rows for mark in marks),
        matching=matching,
        lengths=lengths,
        mixture=mixed,
        shards=shards,
    )
    commit_scored(job.directory, manifest, written)
    return manifest


def _reference_pass(
    records: Path, log: RecordsManifest, job: ScoringJob, mixture: Mixture, progress: Progress
) -> list[PartDone]:
    """Finish every part that is not; what comes back is one mark per part, in name order."""
    parts = {part.file: part.rows for part in sorted(log.parts, key=lambda part: part.file)}
    undone = [name for name in parts if job.workplace.done(name) is None]
    finished = log.kept - sum(parts[name] for name in undone)
    pending: list[str] = []
    for row in _prepared(records, undone, job, mixture):
        finished += 0 if row["pending"] else row["rows"]
        pending += [row["file"]] if row["pending"] else []
        progress(finished, log.kept, "rows scored (tokenizing)")
    for row in _referred(sorted(pending), job):
        finished += parts[row["file"]]
        progress(finished, log.kept, "rows scored")
    marks = [job.workplace.done(name) for name in parts]
    if None in marks:
        raise StorageError(f"{job.directory}: parts of it disappeared while they were made. Score again.")
    return [mark for mark in marks if mark is not None]


def _prepared(records: Path, parts: Sequence[str], job: ScoringJob, mixture: Mixture) -> Any:
    """Tasks that need no model. All of them come before the actors do, which may have to wait for a machine."""
    stage = PrepareStage(records, job.tokenizing, job.caches, job.workplace, mixture)
    return _items(parts).map(stage).iter_rows() if parts else ()


def _referred(parts: Sequence[str], job: ScoringJob) -> Any:
    if not parts:
        return ()
    least, most = (max(1, min(count, len(parts))) for count in job.num_workers)
    passed = _items(parts).map(
        ReferenceScorer,
        fn_constructor_args=(job.model, job.caches, job.workplace),
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_gpus=job.num_gpus,
    )
    return passed.iter_rows()


def _items(parts: Sequence[str]) -> ray.data.Dataset:
    return ray.data.from_items([{"file": name} for name in parts], override_num_blocks=len(parts))


def _balance_books(job: ScoringJob, log: RecordsManifest, marks: Sequence[PartDone]) -> dict[str, int]:
    """All drops, from reading the log on. Raises StorageError if a row went missing or came twice between stages."""
    stages = [job.workplace.tokenized.tally(), job.workplace.referred.tally()]
    scored = sum(mark.facts.rows for mark in marks)
    handed_on = [log.kept, *(stage.kept for stage in stages)]
    if handed_on != [*(stage.read for stage in stages), scored]:
        raise StorageError(
            f"{job.directory}: rows do not add up: {log.kept} records; the stages read "
            f"{[stage.read for stage in stages]} and kept {handed_on[1:]}; {scored} scored. Delete it and score again."
        )
    drops = Counter(log.drops)
    for stage in stages:
        drops.update(stage.drops)
    return dict(sorted(drops.items()))


def require_classes(shards: Sequence[ShardFacts], drops: dict[str, int], *, ups_suffice: bool) -> None:
    """Raises DataError if the train rows of these shards lack a class that the training needs."""
    chosen, rejected = sum(s.train_chosen for s in shards), sum(s.train_rejected for s in shards)
    if chosen and (rejected or ups_suffice):
        return
    needs = "sft trains on thumbs-up alone" if ups_suffice else "this loss needs both"
    alone = " On thumbs-up alone trains objective.loss: sft (of a job: method supervised)." if chosen else ""
    raise DataError(
        f"the log has {chosen} thumbs-up and {rejected} thumbs-down rows to train on ({_reasons(drops)}); {needs}. "
        f"Check data.label_map, or collect votes of the other kind.{alone}"
    )


def _reasons(drops: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "none dropped"


def _weigh(shards: Sequence[ShardFacts], job: ScoringJob) -> tuple[dict[str, Any], dict[str, Any], files.Facts]:
    """Writes `matching.json` and the final shards; returns the reports of prompts and lengths, and what a manifest says
    of the shards.
    """
    source, names = job.workplace.reference, [shard.file for shard in shards]
    matching, report = in_a_task(Weighing.__call__, job.weighing, [source / prompts_name(name) for name in names])
    save_matching(job.directory, matching, report)
    lengths, of_lengths = None, {"applied": False}
    if job.length_matching:
        paths = [source / name for name in names]
        lengths, of_lengths = in_a_task(match_lengths, paths, matching, each_of(paths))
    stage = WeightStage(source, job.directory, matching, lengths)
    return report.as_json(), of_lengths, _write_shards(names, stage)


def _write_shards(names: Sequence[str], stage: WeightStage) -> files.Facts:
    rows = _items(names).map(stage).iter_rows()
    return {row["file"]: {"bytes": row["bytes"], "sha256": row["sha256"]} for row in rows}


def _clear(job: ScoringJob) -> None:
    """Leave nothing to be committed but results: no half-way shards, no scraps of a writer that was killed."""
    files.remove_tree(job.workplace.reference)
    files.remove_scraps(job.directory)
