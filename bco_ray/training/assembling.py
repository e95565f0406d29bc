"""What one worker's run is put together from, before its first step: data, plan, model, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from bco_ray.errors import BcoError, TrainingError
from bco_ray.objective import RewardShift
from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore, Keep
from bco_ray.storage.run_journal import RunJournal
from bco_ray.storage.scored import ScoredManifest, load_scored
from bco_ray.storage.stores import open_store
from bco_ray.training import dry_run
from bco_ray.training.attempt import Attempt
from bco_ray.training.batches import Share, window_batches
from bco_ray.training.building import Trainee, build
from bco_ray.training.checkpoint import Checkpoints
from bco_ray.training.gang import Gang
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.plan import Plan, plan_of
from bco_ray.training.probe import probe_shift
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import ShardReader
from bco_ray.training.trackers import require


@dataclass(frozen=True)
class Run:
    """The collaborators of one worker's run."""

    setup: TrainSetup
    gang: Gang
    trainee: Trainee
    plan: Plan
    reader: ShardReader
    share: Share
    checkpoints: Checkpoints
    metrics: MetricsLog
    journal: RunJournal


def assemble(setup: TrainSetup, gang: Gang) -> Run:
    """Everything but the state. Collective. Raises BcoError on all workers if it fails on one."""
    with together(gang, "start the trackers"):
        require(setup.trackers if gang.rank == 0 else ())
    with together(gang, "read the shards"):
        manifest = load_scored(files.path_of(setup.scored))
        reader = _reader(setup, manifest)
        plan = _plan(setup, reader)
    setup = _with_micro_batch(setup, gang, plan, reader)
    torch.manual_seed(setup.seed)  # a new adapter is drawn here, the same whether or not a dry run drew one before
    with together(gang, "load the model"):
        trainee = build(setup, gang, plan.total_steps)
    checkpoints, attempt = _checkpoints(setup, gang)
    share = Share(gang.rank, gang.size, setup.max_tokens_per_micro_batch)
    journal = RunJournal(files.path_of(setup.run))
    metrics = MetricsLog(files.path_of(setup.run) / "metrics.jsonl", attempt.require_newest)
    return Run(setup, gang, trainee, plan, reader, share, checkpoints, metrics, journal)


def _checkpoints(setup: TrainSetup, gang: Gang) -> tuple[Checkpoints, Attempt]:
    run = files.path_of(setup.run)
    store = CheckpointStore(open_store(setup.checkpoint_storage or str(run / "checkpoints")))
    attempt = Attempt.begin(run, gang, store)
    keep = Keep(setup.checkpoint_keep, setup.checkpoint_keep_best, setup.checkpoint_best)
    return Checkpoints(store, gang, attempt, setup.identity, keep=keep, journal=RunJournal(run)), attempt


def first_shift(run: Run) -> RewardShift:
    """As the setup says; looked up in the data where it says nothing and rewards are not 0 to begin with."""
    setup, shift = run.setup, run.setup.initial_shift
    if setup.shift is not None or setup.starts_at_reference or not setup.objective.kind.shifted:
        return shift
    windows = (window_batches(run.reader, plan, run.share) for plan in run.plan.windows())
    return probe_shift(run.trainee, run.gang, windows, setup.objective, shift)


def _with_micro_batch(setup: TrainSetup, gang: Gang, plan: Plan, reader: ShardReader) -> TrainSetup:
    """With the size of micro-batches found, where the setup leaves it open: on a model that is then thrown away."""
    if setup.max_tokens_per_micro_batch:
        return setup
    run = files.path_of(setup.run)
    budget = dry_run.remembered(run)
    if budget is None:
        with together(gang, "load the model"):
            trainee = build(setup, gang, plan.total_steps)
        rows = [row for ref in next(plan.windows()).rows for row in reader.unit(ref)]
        longest = setup.max_length * (2 if reader.units == "pairs" else 1)
        budget = dry_run.find_budget(trainee.engine, gang, rows, least=longest, run=run)
        trainee.engine.close()
        del trainee
        dry_run.free_memory()
    return replace(setup, max_tokens_per_micro_batch=budget)


def _reader(setup: TrainSetup, manifest: ScoredManifest) -> ShardReader:
    """A window may span two pools: as many shards as two pools have stay decoded."""
    shards_per_pool = -(-len(manifest.shards) * setup.pool_rows // max(1, manifest.kept))
    return ShardReader(
        files.path_of(setup.scored),
        manifest,
        units=setup.objective.kind.units,
        cached_shards=2 * shards_per_pool,
        offsets=setup.offsets,
    )


def _plan(setup: TrainSetup, reader: ShardReader) -> Plan:
    """Raises TrainingError if it is empty."""
    plan = plan_of(
        reader.counts, reader.units, rows=setup.rows_per_step, epochs=setup.epochs, seed=setup.seed,
        pool_rows=setup.pool_rows,
    )  # fmt: skip
    if plan.rows == 0:
        raise TrainingError(
            f"objective.loss {setup.objective.loss} is made of {_UNIT_NAMES[reader.units]}, and there are none among "
            "the train rows. Check the log (bco data check), or train with objective.loss bco."
        )
    return plan


_UNIT_NAMES = {"rows": "votes", "chosen": "thumbs-up votes", "pairs": "pairs of an up and a down on the same prompt"}


@contextmanager
def together(gang: Gang, doing: str) -> Iterator[None]:
    """All workers leave the body or none does: one that failed alone would leave the others waiting for it."""
    failure: BcoError | None = None
    try:
        yield
    except BcoError as error:
        failure = error
    failed = int(gang.sum(torch.tensor(0 if failure is None else 1)))
    if failure is not None:
        raise failure
    if failed:
        raise TrainingError(f"{failed} of {gang.size} workers could not {doing}; their logs say why.")
