"""The training loop of one worker: plan, batches, step, metrics, checkpoints, export. Runs with or without Ray.

The device is always one step ahead of what is read here: step n is launched, then the numbers of step n - 1 are
written down. A checkpoint waits for it, and for a copy of the state in memory; its writing goes on beside the training.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch

from bco_ray.errors import TrainingError
from bco_ray.models import loading
from bco_ray.objective import ShiftTensor
from bco_ray.storage import files
from bco_ray.telemetry import logger
from bco_ray.training.assembling import Run, assemble, first_shift
from bco_ray.training.background import Backoff, insist
from bco_ray.training.batches import WindowBatches, window_batches
from bco_ray.training.checkpoint import PATIENCE_SECONDS
from bco_ray.training.gang import Gang
from bco_ray.training.loop_state import LoopState
from bco_ray.training.metrics import step_metrics
from bco_ray.training.overlap import HostCopy, ahead
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import StepNumbers, train_window
from bco_ray.training.stopping import Notice, StopRequests
from bco_ray.training.trackers import tracking
from bco_ray.training.watchdog import Watchdog

MAX_SKIPPED_IN_A_ROW = 10

AFTER_EXPORT_SECONDS = 30
"""How long a last checkpoint is waited for that nobody needs any more."""

JUDGED_BY = ("loss", "auc", "rewards/margins", "rewards/accuracies")
"""Metrics whose means a checkpoint carries, so that the best ones can be kept."""

StepHook = Callable[[int], None]
"""Called on every worker after each optimizer step with its number; tests stop a run with it."""


@dataclass(frozen=True)
class Outcome:
    """Where the run stands. `stopped`: it was asked to, and its checkpoint is made; else the model is exported."""

    state: LoopState
    stopped: bool


@dataclass(frozen=True)
class _Launched:
    """A step whose numbers are on their way."""

    window: WindowBatches
    learning_rate: float
    numbers: HostCopy
    seconds: float
    """Since the step before was launched: in the long run what a step takes."""


def train(
    setup: TrainSetup, gang: Gang, *, after_step: StepHook | None = None, notices: Sequence[Notice] = ()
) -> Outcome:
    """Train to the end from the newest checkpoint (or from the start) and export the model to `<run>/model`.

    Collective. Stops early, with a checkpoint, if one of `notices` or somebody else asks (see `stopping`). Raises
    TrainingError when going on makes no sense.
    """
    torch.set_num_threads(setup.threads)
    run = assemble(setup, gang)
    state = run.checkpoints.load_latest(run.trainee.engine) or LoopState.first(first_shift(run))
    if gang.rank == 0:
        logger.info("training from step %d of %d on %d workers", state.next_step, run.plan.total_steps, gang.size)
        run.journal.write("training", step=state.next_step, total_steps=run.plan.total_steps, workers=gang.size)
        run.metrics.truncate(state.next_step)
    stop = StopRequests(files.path_of(setup.run), gang.rank, notices)
    with tracking(run.metrics, setup.trackers if gang.rank == 0 else ()):
        outcome = _Loop(run, state, stop).run(after_step)
        if not outcome.stopped:
            _finish(run, outcome.state)
        _settle_checkpoint(run, outcome)
    return outcome


class _Loop:
    """Steps from one state to the end of the plan."""

    def __init__(self, run: Run, state: LoopState, stop: StopRequests) -> None:
        self._run = run
        self._stop = stop
        self._asked = False
        self._state = state
        """As of the last step whose numbers were read; its shift is a step behind `_shift`."""
        self._shift = ShiftTensor.of(state.shift, run.trainee.engine.device)
        self._launched: _Launched | None = None
        self._skipped_in_a_row = 0
        self._since_checkpoint: dict[str, list[float]] = defaultdict(list)
        self._last_launch = time.monotonic()

    def run(self, after_step: StepHook | None) -> Outcome:
        """To the end, or to the step after which all workers know that one was asked to stop."""
        run, setup = self._run, self._run.setup
        stopped = False
        with (
            closing(ahead(self._windows())) as windows,
            Watchdog(files.path_of(setup.run), run.gang.rank, setup.hang_seconds) as dog,
        ):
            for window in windows:
                dog.beat(f"training step {window.plan.step}")
                self._launch(window)
                done = window.plan.step + 1
                last = done == run.plan.total_steps
                stopped = self._asked and not last
                if last or stopped or done % setup.checkpoint_every == 0:
                    dog.beat(f"copying checkpoint {done}")
                    alive = partial(dog.beat, f"waiting for storage at step {done}")
                    self._checkpoint(must=last or stopped, alive=alive)
                if after_step:
                    after_step(window.plan.step)
                if stopped:
                    break
        return Outcome(self._state, stopped)

    def _windows(self) -> Iterator[WindowBatches]:
        run, pin = self._run, self._run.trainee.engine.device.type == "cuda"
        mismatched = run.setup.objective.kind.mismatched
        for plan in run.plan.windows(self._state.next_step):
            window = window_batches(run.reader, plan, run.share, mismatched=mismatched)
            yield window.pinned() if pin else window

    def _launch(self, window: WindowBatches) -> None:
        run, trainee = self._run, self._run.trainee
        learning_rate = trainee.engine.learning_rate
        asked = self._stop.asked()
        result = train_window(
            trainee.engine, run.gang, trainee.reference, window, self._shift, run.setup.objective, asked=asked
        )
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
        self._asked = self._asked or numbers.asked > 0
        if self._run.gang.rank == 0:
            row = self._metrics_row(launched, numbers)
            self._run.metrics.append(row)
            self._remember(row)
        self._state = self._state.after(window.plan.step, tokens=window.totals.tokens, updated=updated)
        if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"step {window.plan.step}: {MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite. "
                "Lower training.learning_rate, or train in fp32."
            )

    def _remember(self, row: Mapping[str, Any]) -> None:
        for name in JUDGED_BY:
            value = row.get(name)
            if value is not None and math.isfinite(value):  # a step that was skipped is judged by nothing
                self._since_checkpoint[name].append(value)

    def _checkpoint(self, *, must: bool, alive: Callable[[], None]) -> None:
        launched, self._launched = self._launched, None
        self._read(launched)
        with suppress(OSError):  # a full disk: they wait in memory
            self._run.metrics.flush()  # the steps before a checkpoint are not done again
        self._state = self._state.with_shift(self._shift.value())
        means = {name: fmean(values) for name, values in self._since_checkpoint.items()}
        if self._run.checkpoints.save(self._run.trainee.engine, self._state, means, must=must, alive=alive):
            self._since_checkpoint.clear()

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
    exported = run.trainee.engine.export_state()
    if run.gang.rank == 0:

        def write() -> None:
            _write_model(run, state, dict(exported))

        insist(write, Backoff(), seconds=PATIENCE_SECONDS, on_failure=lambda *trouble: _cannot_export(run, *trouble))
    run.gang.barrier()


def _settle_checkpoint(run: Run, outcome: Outcome) -> None:
    """All workers leave when the last checkpoint counts, or has been waited for long enough: with the model there, not
    so long.
    """
    if run.checkpoints.wait(None if outcome.stopped else AFTER_EXPORT_SECONDS):
        run.checkpoints.tidy()
    else:
        run.journal.write("checkpoint_missing", step=outcome.state.next_step, rank=run.gang.rank)
        logger.error("checkpoint %d could not be written in time", outcome.state.next_step)
    run.gang.barrier()


def _write_model(run: Run, state: LoopState, exported: dict[str, torch.Tensor]) -> None:
    run.metrics.flush()
    target = files.path_of(run.setup.run) / "model"
    if files.is_there(target):
        return
    files.write_json(target.with_name("outcome.json"), state.as_json())
    with files.new_directory(target) as scratch:
        loading.export_model(run.trainee.policy.lm, scratch, exported, run.setup.model)


def _cannot_export(run: Run, error: Exception, seconds: float) -> None:
    logger.error("the model cannot be written: %s; tried again in %.0f s", error, seconds)
    run.journal.write("export_failed", error=str(error), again_in_seconds=seconds)
