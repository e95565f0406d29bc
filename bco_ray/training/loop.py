"""The training loop of one worker: plan, batches, step, metrics, checkpoints, export. Runs with or without Ray.

The device is always one step ahead of what is read here: step n is launched, then the numbers of step n - 1 are
written down. Only a checkpoint waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bco_ray.errors import BcoError, TrainingError
from bco_ray.models import loading
from bco_ray.objective import RewardShift, ShiftTensor
from bco_ray.storage import files
from bco_ray.storage.scored import ScoredManifest, load_scored
from bco_ray.telemetry import logger
from bco_ray.training import dry_run
from bco_ray.training.batches import Share, WindowBatches, window_batches
from bco_ray.training.building import Trainee, build
from bco_ray.training.checkpoint import Checkpoints, LoopState
from bco_ray.training.gang import Gang
from bco_ray.training.metrics import MetricsLog, step_metrics
from bco_ray.training.overlap import HostCopy, ahead
from bco_ray.training.plan import Plan
from bco_ray.training.probe import probe_shift
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import ShardReader
from bco_ray.training.step import StepNumbers, train_window
from bco_ray.training.trackers import require, tracking

MAX_SKIPPED_IN_A_ROW = 10

StepHook = Callable[[int], None]
"""Called on every worker after each optimizer step with its number; tests stop a run with it."""


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


@dataclass(frozen=True)
class _Launched:
    """A step whose numbers are on their way."""

    window: WindowBatches
    learning_rate: float
    numbers: HostCopy
    seconds: float
    """Since the step before was launched: in the long run what a step takes."""


def train(setup: TrainSetup, gang: Gang, *, after_step: StepHook | None = None) -> LoopState:
    """Train to the end from the newest checkpoint (or from the start) and export the model to `<run>/model`.

    Collective. Raises TrainingError when going on makes no sense.
    """
    torch.set_num_threads(setup.threads)
    run = _assemble(setup, gang)
    state = run.checkpoints.load_latest(run.trainee.engine, gang) or LoopState.first(_first_shift(run))
    if gang.rank == 0:
        logger.info("training from step %d of %d on %d workers", state.next_step, run.plan.total_steps, gang.size)
        run.metrics.truncate(state.next_step)
    with tracking(run.metrics, setup.trackers if gang.rank == 0 else ()):
        state = _Loop(run, state).run(after_step)
        _finish(run, state)
    return state


def _assemble(setup: TrainSetup, gang: Gang) -> Run:
    with _together(gang, "start the trackers"):
        require(setup.trackers if gang.rank == 0 else ())
    with _together(gang, "read the shards"):
        manifest = load_scored(Path(setup.scored))
        reader = _reader(setup, manifest)
        plan = _plan(setup, reader)
    setup = _with_micro_batch(setup, gang, plan, reader)
    torch.manual_seed(setup.seed)  # a new adapter is drawn here, the same whether or not a dry run drew one before
    with _together(gang, "load the model"):
        trainee = build(setup, gang, plan.total_steps)
    sharded = {"world_size": gang.size} if setup.zero_stage else {}
    identity = {**setup.identity, "zero_stage": setup.zero_stage, **sharded}
    checkpoints = Checkpoints(Path(setup.run) / "checkpoints", identity, keep=setup.checkpoint_keep)
    share = Share(gang.rank, gang.size, setup.max_tokens_per_micro_batch)
    metrics = MetricsLog(Path(setup.run) / "metrics.jsonl")
    return Run(setup, gang, trainee, plan, reader, share, checkpoints, metrics)


def _first_shift(run: Run) -> RewardShift:
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
    run = Path(setup.run)
    budget = dry_run.remembered(run)
    if budget is None:
        with _together(gang, "load the model"):
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
    units = setup.objective.kind.units
    return ShardReader(Path(setup.scored), manifest, units=units, cached_shards=2 * shards_per_pool)


def _plan(setup: TrainSetup, reader: ShardReader) -> Plan:
    """Windows of `rows_per_step` rows: half as many pairs, where a loss takes pairs. Raises TrainingError if empty."""
    per_unit = 2 if reader.units == "pairs" else 1
    plan = Plan(reader.counts, max(1, setup.rows_per_step // per_unit), setup.epochs, setup.seed, setup.pool_rows)
    if plan.rows == 0:
        raise TrainingError(
            f"objective.loss {setup.objective.loss} is made of {_UNIT_NAMES[reader.units]}, and there are none among "
            "the train rows. Check the log (bco data check), or train with objective.loss bco."
        )
    return plan


_UNIT_NAMES = {"rows": "votes", "chosen": "thumbs-up votes", "pairs": "pairs of an up and a down on the same prompt"}


@contextmanager
def _together(gang: Gang, doing: str) -> Iterator[None]:
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


class _Loop:
    """Steps from one state to the end of the plan."""

    def __init__(self, run: Run, state: LoopState) -> None:
        self._run = run
        self._state = state
        """As of the last step whose numbers were read; its shift is a step behind `_shift`."""
        self._shift = ShiftTensor.of(state.shift, run.trainee.engine.device)
        self._launched: _Launched | None = None
        self._skipped_in_a_row = 0
        self._last_launch = time.monotonic()

    def run(self, after_step: StepHook | None) -> LoopState:
        """To the end."""
        run = self._run
        with closing(ahead(self._windows())) as windows:
            for window in windows:
                self._launch(window)
                done = window.plan.step + 1
                if done == run.plan.total_steps or done % run.setup.checkpoint_every == 0:
                    self._checkpoint()
                if after_step:
                    after_step(window.plan.step)
        run.checkpoints.wait()
        run.gang.barrier()
        return self._state

    def _windows(self) -> Iterator[WindowBatches]:
        run, pin = self._run, self._run.trainee.engine.device.type == "cuda"
        mismatched = run.setup.objective.kind.mismatched
        for plan in run.plan.windows(self._state.next_step):
            window = window_batches(run.reader, plan, run.share, mismatched=mismatched)
            yield window.pinned() if pin else window

    def _launch(self, window: WindowBatches) -> None:
        run, trainee = self._run, self._run.trainee
        learning_rate = trainee.engine.learning_rate
        result = train_window(trainee.engine, run.gang, trainee.reference, window, self._shift, run.setup.objective)
        self._shift = result.shift
        now = time.monotonic()
        launched = _Launched(window, learning_rate, HostCopy(result.numbers), now - self._last_launch)
        self._last_launch = now
        before, self._launched = self._launched, launched
        self._read(before)

    def _read(self, launched: _Launched | None) -> None:
        """Write down a step. Raises TrainingError when too many in a row could not be used."""
        if launched is None:
            return
        window, numbers = launched.window, StepNumbers.read(launched.numbers.wait())
        updated = numbers.grad_norm is not None
        self._skipped_in_a_row = 0 if updated else self._skipped_in_a_row + 1
        if self._run.gang.rank == 0:
            self._run.metrics.append(self._metrics_row(launched, numbers))
        self._state = self._state.after(window.plan.step, tokens=window.totals.tokens, updated=updated)
        if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"step {window.plan.step}: {MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite. "
                "Lower training.learning_rate, or train in fp32."
            )

    def _checkpoint(self) -> None:
        launched, self._launched = self._launched, None
        self._read(launched)
        self._state = self._state.with_shift(self._shift.value())
        self._run.checkpoints.save(self._run.trainee.engine, self._run.gang, self._state)

    def _metrics_row(self, launched: _Launched, numbers: StepNumbers) -> dict[str, Any]:
        run, plan, totals = self._run, launched.window.plan, launched.window.totals
        loss = run.setup.objective.of_window(numbers.sums, totals)
        return {
            "step": plan.step,
            "total_steps": run.plan.total_steps,
            "epoch": (plan.step + 1) / run.plan.steps_per_epoch,
            "loss": loss.item(),
            "learning_rate": launched.learning_rate,
            "grad_norm": numbers.grad_norm,
            "delta": numbers.delta,
            **step_metrics(numbers, totals, run.setup.objective),
            "tokens": totals.tokens,
            "seconds": round(launched.seconds, 4),
            "tokens_per_second": round(totals.tokens / launched.seconds, 1),
        }


def _finish(run: Run, state: LoopState) -> None:
    """Worker 0 writes the final state, then the trained model: that directory appears only when all is there."""
    target = Path(run.setup.run) / "model"
    exported = run.trainee.engine.export_state()
    if run.gang.rank == 0 and not target.exists():
        files.write_json(target.with_name("outcome.json"), state.as_json())
        with files.new_directory(target) as scratch:
            loading.export_model(run.trainee.policy.lm, scratch, exported, run.setup.model)
    run.gang.barrier()
