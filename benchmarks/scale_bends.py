"""Where the design bends: each limit as a line of numbers for logs of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scale_costs import MODELS, Hardware, Job, cost
from scale_limits import Cut, host_seconds_per_row, most_even_votes, step_sum_bytes
from scale_plans import Plan, plan
from scale_stages import Plant, commit_seconds, fit
from scale_text import amount, duration, size
from scale_training import ADAM, HALF, MASTER, Wire, packed_windows, restart_seconds, volume

from bco_ray.config.training import CheckpointSpec, TrainingSpec
from bco_ray.scoring.spread import MOST_IN_FLIGHT

MOST_WORKERS = 1024


@dataclass(frozen=True)
class Bend:
    """A thing that grows, by size of the log."""

    what: str
    by_votes: tuple[str, ...]


def by_log(votes: Sequence[float], hardware: Hardware, job: Job) -> list[Bend]:
    """What grows with the log."""
    cuts = {count: Cut.of(count, job) for count in votes}

    def row(what: str, of: Callable[[Cut], str]) -> Bend:
        return Bend(what, tuple(of(cuts[count]) for count in votes))

    def plant(cut: Cut) -> Plant:
        return Plant(cut.votes, MODELS[0], MOST_WORKERS, hardware, job)

    return [
        row("votes acknowledged by one SQLite log: time to take them in", lambda c: duration(c.votes / cost("votes"))),
        row("buckets (at most 65,536), log in each", lambda c: f"{c.buckets:,}, {size(c.bucket_bytes)}"),
        row("memory of one settling task, its objects alone", lambda c: size(c.settling_memory)),
        row("parts, and as many shards", lambda c: f"{c.parts:,}"),
        row("manifest of scored shards, read by every worker", lambda c: size(c.scored_manifest)),
        row("committing shards: one process hashes them", lambda c: duration(_commit(plant(c)))),
        row(f"density fit on {MOST_IN_FLIGHT} tasks, whatever there is", lambda c: duration(fit(plant(c)).seconds)),
        row("finding the place again late in an epoch", lambda c: duration(c.votes * cost("plan"))),
        row(f"shards read by {MOST_WORKERS:,} workers", lambda c: size(MOST_WORKERS * plant(c).scored_bytes)),
        row(f"metrics.jsonl, {job.rows_per_step:,} rows a step", lambda c: size(_metrics(c, job.rows_per_step))),
        row("the same, 128 rows a step", lambda c: size(_metrics(c, 128))),
    ]  # fmt: skip


def _commit(plant: Plant) -> float:
    return commit_seconds(plant.scored_bytes, plant.cut.parts, plant.hardware)


def _metrics(cut: Cut, rows_per_step: int) -> float:
    return cut.votes / rows_per_step * cost("metrics_row")


def of_training(hardware: Hardware, job: Job, seed: int) -> list[tuple[str, str]]:
    """What does not grow with the log: (what, numbers)."""
    rows_per_second = 1 / host_seconds_per_row(job)
    every = CheckpointSpec().every_steps
    return [
        ("summed over workers per step beside gradients", _sums(job)),
        ("workers with rows to train on, 128 rows a step (the default)", f"at most {TrainingSpec().rows_per_step}"),
        ("longest share of a window over the mean, by workers", _imbalance(job, seed)),
        ("rows/s that a worker's host can plan, decode and lay out, whoever trains on them", f"{rows_per_second:,.0f}"),
        ("workers from which on that is what a step takes", _host_bound(rows_per_second, hardware, job)),
        ("traffic by arithmetic of one micro-batch between nodes, any model", _traffic(hardware, job)),
        ("ZeRO 0: read by each worker at a restart", _whole_checkpoints()),
        (f"{MOST_WORKERS:,} workers: from a failure to training again", _restarts(hardware, job, seed)),
        (f"{MOST_WORKERS:,} workers: {every} steps (a checkpoint is due), its writing", _due(hardware, job, seed)),
        ("8B, 512 workers, 1e9 votes: time lost if a node gets a notice every", _notices(hardware, job, seed)),
        ("bfloat16 weights on the one GPU of a scorer", _scorers(hardware)),
        ("votes up to which buckets stay at 8 MiB", amount(most_even_votes(job))),
    ]  # fmt: skip


def _sums(job: Job) -> str:
    sizes = ", ".join(f"{step_sum_bytes(rows):,} B for {rows:,} rows" for rows in (128, job.rows_per_step))
    return f"8 B x (23 + rows of the window): {sizes}; the shift takes 4 of these numbers"


def _imbalance(job: Job, seed: int) -> str:
    found = []
    for workers in (8, 64, 256, 1024):
        shares = [window.sum(axis=0) for window in packed_windows(job, workers, seed)]
        found.append(f"{workers:,}: x{sum(s.max() / s.mean() for s in shares) / len(shares):.2f}")
    return ", ".join(found)


def _host_bound(rows_per_second: float, hardware: Hardware, job: Job) -> str:
    per_gpu = {m.name: hardware.gpu_flops * hardware.mfu / (6 * m.parameters * job.mean_tokens) for m in MODELS}
    return ", ".join(f"{name}: {rows_per_second / rate:,.0f}" for name, rate in per_gpu.items())


def _traffic(hardware: Hardware, job: Job) -> str:
    wire, found = Wire(hardware), []
    for stage in (2, 3):
        seconds = wire.half(volume(stage, 1e9).each, MOST_WORKERS)
        arithmetic = 6e9 * job.pack_tokens / (hardware.gpu_flops * hardware.mfu)
        found.append(f"ZeRO {stage}: x{seconds / arithmetic:.2f}")
    return ", ".join(found) + f" (packs of {job.pack_tokens:,} tokens)"


def _whole_checkpoints() -> str:
    return ", ".join(f"{m.name}: {size((MASTER + ADAM) * m.parameters)}" for m in MODELS)


def _largest(hardware: Hardware, job: Job, seed: int) -> list[Plan]:
    found = (plan(1e8, model, MOST_WORKERS, hardware, job, seed) for model in MODELS)
    return [one for one in found if one is not None]


def _restarts(hardware: Hardware, job: Job, seed: int) -> str:
    plans = _largest(hardware, job, seed)
    times = [restart_seconds(p.model, p.workers, p.stage, hardware) for p in plans]
    return ", ".join(f"{p.model.name}: {duration(t)}" for p, t in zip(plans, times, strict=True))


def _due(hardware: Hardware, job: Job, seed: int) -> str:
    every = CheckpointSpec().every_steps
    plans = _largest(hardware, job, seed)
    said = (f"{p.model.name}: {duration(every * p.step.seconds)}, {duration(p.checkpoints.write)}" for p in plans)
    return "; ".join(said)


def _notices(hardware: Hardware, job: Job, seed: int) -> str:
    found = []
    for hours in (float("inf"), 168.0, 24.0, 6.0):
        one = plan(1e9, MODELS[1], 512, replace(hardware, spot_hours=hours), job, seed)
        if one is None:
            return "does not fit"
        lost = 1 - one.run.steps * one.step.seconds / one.run.seconds
        found.append(f"{'never' if hours == float('inf') else f'{hours:g} h'}: {lost:.1%}")
    return ", ".join(found)


def _scorers(hardware: Hardware) -> str:
    return ", ".join(f"{m.name}: {size(HALF * m.parameters)}" for m in MODELS) + f", of {hardware.gpu_memory_gb:.0f} GB"
