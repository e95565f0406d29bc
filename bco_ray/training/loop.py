"""The training loop of one worker: plan, batches, step, metrics, checkpoints, export. Runs with or without Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bco_ray.errors import BcoError, TrainingError
from bco_ray.models import loading
from bco_ray.models.policy import Policy
from bco_ray.objective import RewardShift
from bco_ray.storage import files
from bco_ray.storage.scored import load_scored
from bco_ray.telemetry import logger
from bco_ray.training.batches import ShardReader, micro_batches
from bco_ray.training.checkpoint import Checkpoints, LoopState
from bco_ray.training.engine import Engine, TorchEngine, warmup_schedule
from bco_ray.training.gang import Gang
from bco_ray.training.metrics import MetricsLog, step_metrics
from bco_ray.training.plan import POOL_ROWS, Plan, WindowPlan
from bco_ray.training.step import Objective, StepResult, WindowTotals, train_window

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class TrainSetup:
    """Everything a worker needs, in plain values: it travels through Ray as a dict. Paths are on shared storage."""

    scored: str
    model: str
    run: str
    adapter: dict[str, Any] | None
    objective: Objective
    half_life_rows: float
    learning_rate: float
    lr_scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    epochs: int
    rows_per_step: int
    max_tokens_per_micro_batch: int
    zero_stage: int
    bf16: bool
    device: str
    checkpoint_every: int
    checkpoint_keep: int
    seed: int
    identity: dict[str, Any] = field(default_factory=dict)
    pool_rows: int = POOL_ROWS
    threads: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For Ray's `train_loop_config`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSetup:
        """The inverse of `as_dict`."""
        return cls(**{**values, "objective": Objective(**values["objective"])})


@dataclass(frozen=True)
class Run:
    """The collaborators of one worker's run."""

    setup: TrainSetup
    gang: Gang
    engine: Engine
    policy: Policy
    plan: Plan
    reader: ShardReader
    checkpoints: Checkpoints
    metrics: MetricsLog


StepHook = Callable[[int], None]
"""Called on every worker after each optimizer step with its number; tests stop a run with it."""


def train(setup: TrainSetup, gang: Gang, *, after_step: StepHook | None = None) -> LoopState:
    """Train to the end from the newest checkpoint (or from the start) and export the model to `<run>/model`.

    Collective. Raises TrainingError when going on makes no sense.
    """
    torch.set_num_threads(setup.threads)
    torch.manual_seed(setup.seed)
    run = _assemble(setup, gang)
    state = run.checkpoints.load_latest(run.engine, gang) or _initial_state(setup)
    if gang.rank == 0:
        logger.info("training from step %d of %d on %d workers", state.next_step, run.plan.total_steps, gang.size)
        run.metrics.truncate(state.next_step)
    state = _loop(run, state, after_step)
    _finish(run, state)
    return state


def make_engine(setup: TrainSetup, policy: Policy, gang: Gang, total_steps: int) -> Engine:
    """ZeRO 0 is plain torch, 1 and 2 are DeepSpeed."""
    schedule = warmup_schedule(setup.lr_scheduler, total_steps=total_steps, warmup_ratio=setup.warmup_ratio)
    numbers = {
        "learning_rate": setup.learning_rate,
        "weight_decay": setup.weight_decay,
        "max_grad_norm": setup.max_grad_norm,
    }
    if setup.zero_stage == 0:
        return TorchEngine(policy, gang, schedule=schedule, device=torch.device(setup.device), **numbers)
    from bco_ray.training import deepspeed_engine as ds  # 2 s to import; plain torch does without

    ds.prepare_process(setup.device)
    config = ds.deepspeed_config(zero_stage=setup.zero_stage, bf16=setup.bf16, **numbers)
    return ds.DeepSpeedEngine(policy, config, schedule)


def _assemble(setup: TrainSetup, gang: Gang) -> Run:
    with _together(gang, "read the shards or load the model"):
        reader, policy = _read(setup)
    plan = Plan(reader.counts, setup.rows_per_step, setup.epochs, setup.seed, setup.pool_rows)
    engine = make_engine(setup, policy, gang, plan.total_steps)
    sharded = {"world_size": gang.size} if setup.zero_stage else {}
    identity = {**setup.identity, "zero_stage": setup.zero_stage, **sharded}
    checkpoints = Checkpoints(Path(setup.run) / "checkpoints", identity, keep=setup.checkpoint_keep)
    return Run(setup, gang, engine, policy, plan, reader, checkpoints, MetricsLog(Path(setup.run) / "metrics.jsonl"))


def _read(setup: TrainSetup) -> tuple[ShardReader, Policy]:
    manifest = load_scored(Path(setup.scored))
    shards_per_pool = math.ceil(len(manifest.shards) * setup.pool_rows / max(1, manifest.kept))
    reader = ShardReader(Path(setup.scored), manifest, cached_shards=2 * shards_per_pool)  # a window may span two
    dtype = torch.bfloat16 if setup.bf16 else torch.float32
    return reader, Policy(loading.load_policy(setup.model, setup.adapter, dtype=dtype))


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


def _initial_state(setup: TrainSetup) -> LoopState:
    return LoopState(0, RewardShift(half_life_rows=setup.half_life_rows), skipped_steps=0, tokens_seen=0)


def _loop(run: Run, state: LoopState, after_step: StepHook | None) -> LoopState:
    skipped_in_a_row = 0
    for window in run.plan.windows(state.next_step):
        state, updated = _step(run, window, state)
        skipped_in_a_row = 0 if updated else skipped_in_a_row + 1
        if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"step {window.step}: {skipped_in_a_row} steps in a row had a gradient that is not finite. "
                "Lower training.learning_rate, or train in fp32."
            )
        last = state.next_step == run.plan.total_steps
        if last or state.next_step % run.setup.checkpoint_every == 0:
            run.checkpoints.save(run.engine, run.gang, state)
        if after_step:
            after_step(window.step)
    return state


def _step(run: Run, window: WindowPlan, state: LoopState) -> tuple[LoopState, bool]:
    start = time.monotonic()
    batches = micro_batches(
        run.reader,
        window,
        rank=run.gang.rank,
        workers=run.gang.size,
        max_tokens=run.setup.max_tokens_per_micro_batch,
    )
    learning_rate = run.engine.learning_rate
    totals = WindowTotals(window.chosen, window.rejected)
    result = train_window(run.engine, run.gang, batches, totals, state.shift, run.setup.objective)
    tokens = sum(run.reader.lengths(window.rows))
    updated = result.grad_norm is not None
    state = LoopState(window.step + 1, result.shift, state.skipped_steps + (not updated), state.tokens_seen + tokens)
    if run.gang.rank == 0:
        seconds = time.monotonic() - start
        run.metrics.append(_metrics_row(run, window, result, learning_rate, tokens, seconds))
    return state, updated


def _metrics_row(
    run: Run, window: WindowPlan, result: StepResult, learning_rate: float, tokens: int, seconds: float
) -> dict[str, Any]:
    return {
        "step": window.step,
        "total_steps": run.plan.total_steps,
        "epoch": (window.step + 1) / run.plan.steps_per_epoch,
        "loss": result.loss,
        "learning_rate": learning_rate,
        "grad_norm": result.grad_norm,
        "delta": result.delta,
        **step_metrics(result.sums, beta=run.setup.objective.beta),
        "tokens": tokens,
        "seconds": round(seconds, 4),
    }


def _finish(run: Run, state: LoopState) -> None:
    """Worker 0 writes the final state, then the trained model: that directory appears only when all is there."""
    target = Path(run.setup.run) / "model"
    if run.gang.rank == 0 and not target.exists():
        files.write_json(target.with_name("outcome.json"), state.as_json())
        with files.new_directory(target) as scratch:
            loading.export_model(run.policy.lm, scratch, run.engine.export_state(), run.setup.model)
    run.gang.barrier()
