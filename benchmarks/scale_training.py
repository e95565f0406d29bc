"""Training on N workers: a step by Monte Carlo over windows and stragglers, a run by its failures one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scale_costs import GB, Hardware, Job, Model, cost
from scale_limits import host_seconds_per_row, step_sum_bytes

from bco_ray.models.packing import fill_packs

WINDOWS = 12
MASTER, ADAM, HALF, FLOAT = 4, 8, 2, 4
"""Bytes per parameter."""
MOST_FAILURES = 20_000
LIVE_PARAMETERS = 1e9
"""DeepSpeed's stage3_max_live_parameters: what ZeRO 3 may hold gathered."""


@dataclass(frozen=True)
class Wire:
    """One collective's cost: bytes at the slowest link each worker has, plus hops. Ring for bytes, tree for latency."""

    hardware: Hardware

    def bandwidth(self, workers: int) -> float:
        """Bytes/s of one worker."""
        inside = workers <= self.hardware.gpus_per_node
        return GB * (self.hardware.nvlink_gb if inside else self.hardware.network_gb)

    def all_reduce(self, size: float, workers: int) -> float:
        """Seconds: a reduce-scatter and an all-gather."""
        return 2 * self.half(size, workers)

    def half(self, size: float, workers: int) -> float:
        """Seconds of a reduce-scatter or an all-gather of `size` bytes in all."""
        if workers == 1:
            return 0.0
        hops = math.ceil(math.log2(workers))
        sent = size * (workers - 1) / workers
        return sent / self.bandwidth(workers) + hops * self.hardware.network_latency


@dataclass(frozen=True)
class Volume:
    """Bytes of gradients and weights per step: `once`, and for each micro-batch. Halves: one way of an all-reduce."""

    once: float
    each: float

    def halves(self, micro_batches: int) -> float:
        """Of a whole step."""
        return self.once + self.each * micro_batches


def volume(stage: int, parameters: float) -> Volume:
    """ZeRO 0 is our own all-reduce in float32; 1 to 3 as DeepSpeed does it where the caller ends a window.

    1 reduces once and gathers the weights, 2 reduces after each micro-batch, 3 gathers for each forward and backward
    too. Bytes as in 1910.02054, section 7; when they are sent is read in DeepSpeed 0.19.8.
    """
    half = HALF * parameters
    return {
        0: Volume(2 * FLOAT * parameters, 0),
        1: Volume(2 * half, 0),
        2: Volume(half, half),
        3: Volume(0, 3 * half),
    }[stage]


def gpu_memory(stage: int, model: Model, workers: int, job: Job) -> float:
    """Bytes on one worker: weights, gradients, masters and Adam, and a pack's activations, layers computed twice."""
    P, N = model.parameters, workers
    state = {
        0: (HALF + FLOAT + MASTER + ADAM) * P,
        1: (2 * HALF + (MASTER + ADAM) / N) * P,
        2: (HALF + (FLOAT + MASTER + ADAM) / N) * P,
        3: (HALF + FLOAT + MASTER + ADAM) * P / N + HALF * min(P, LIVE_PARAMETERS),
    }[stage]
    kept = job.pack_tokens * model.hidden * HALF * (model.layers + 17)  # 17: one layer's inside, at 34 bytes a number
    return state + kept


def stage_for(model: Model, workers: int, hardware: Hardware, job: Job, seed: int) -> int | None:
    """Of those that fit into nine tenths of a GPU the one that moves least; None: none fits."""
    room = 0.9 * hardware.gpu_memory_gb * GB
    fitting = [s for s in range(4 if workers > 1 else 1) if gpu_memory(s, model, workers, job) <= room]
    if not fitting:
        return None
    micro_batches = len(packed_windows(job, workers, seed)[0])
    return min(fitting, key=lambda stage: volume(stage, model.parameters).halves(micro_batches))


@lru_cache(maxsize=64)
def packed_windows(job: Job, workers: int, seed: int) -> tuple[np.ndarray, ...]:
    """Tokens of WINDOWS windows as (micro-batch, worker), laid out by the trainer's own `fill_packs`."""
    random = np.random.default_rng([seed, 1])
    found = []
    for _ in range(WINDOWS):
        lengths = row_lengths(job, random)
        packs = fill_packs(lengths, job.pack_tokens, multiple_of=workers)
        tokens = [sum(lengths[i] for i in pack) for pack in packs]
        found.append(np.array(tokens, float).reshape(-1, workers))
    return tuple(found)


def row_lengths(job: Job, random: np.random.Generator) -> list[int]:
    """Of one window: log-normal, cut, then scaled to the mean asked for (and cut again)."""
    drawn = np.exp(job.length_spread * random.standard_normal(job.rows_per_step))
    scaled = np.minimum(drawn * job.mean_tokens / drawn.mean(), job.max_tokens)
    return [max(2, int(n)) for n in np.minimum(scaled * job.mean_tokens / scaled.mean(), job.max_tokens)]


@dataclass(frozen=True)
class Step:
    """Seconds of a mean step, and what of it each part is. `ideal`: were all workers busy with nothing else."""

    seconds: float
    ideal: float
    compute: float
    wire: float
    sums: float
    host: float
    bytes_per_worker: float


def simulate_step(model: Model, workers: int, stage: int, hardware: Hardware, job: Job, seed: int) -> Step:
    """Mean over windows, each with other slow workers. Workers meet once a step, from stage 2 on once a micro-batch."""
    random = np.random.default_rng([seed, 2, workers])
    speed = hardware.gpu_flops * hardware.mfu
    wire, moved = Wire(hardware), volume(stage, model.parameters)
    sums = wire.all_reduce(step_sum_bytes(job.rows_per_step), workers)
    host = job.rows_per_step * host_seconds_per_row(job)
    rows = []
    for tokens in packed_windows(job, workers, seed):
        slow = np.where(random.random(workers) < hardware.slow_share, hardware.slow_factor, 1.0)
        noise = np.exp(hardware.jitter * random.standard_normal(tokens.shape)) * slow
        seconds = 6 * model.parameters * tokens / speed * noise
        compute = seconds.max(axis=1).sum() if stage >= 2 else seconds.sum(axis=0).max()
        comm = wire.half(moved.once, workers) + len(tokens) * wire.half(moved.each, workers)
        shown = comm - min(hardware.overlap * comm, compute) if stage >= 2 else comm
        sent = moved.halves(len(tokens)) * (workers - 1) / workers
        ideal = 6 * model.parameters * tokens.sum() / speed / workers
        rows.append((max(compute + shown + sums, host), ideal, compute, shown, sums, host, sent))
    return Step(*(float(mean) for mean in np.mean(rows, axis=0)))


@dataclass(frozen=True)
class Checkpoints:
    """`copy`: seconds a step waits; `write`: until it counts; `every`: seconds between two that do."""

    size: float
    copy: float
    write: float
    every: float


def checkpoints(model: Model, workers: int, step: Step, hardware: Hardware, job: Job) -> Checkpoints:
    """Weights and Adam in float32, a share per worker. One that is due while another is written is skipped."""
    size = (MASTER + ADAM) * model.parameters
    write = size / storage_rate(workers, hardware) + workers * hardware.file_seconds  # worker 0 reads every mark
    copy = size / workers / (hardware.host_copy_gb * GB)
    due = job.checkpoint_every * step.seconds
    return Checkpoints(size, copy, write, due * max(1, math.ceil(write / due)))


def storage_rate(workers: int, hardware: Hardware) -> float:
    """Bytes/s all workers together have."""
    nodes = math.ceil(workers / hardware.gpus_per_node)
    return GB * min(hardware.storage_gb, nodes * hardware.node_storage_gb)


def restart_seconds(model: Model, workers: int, stage: int, hardware: Hardware) -> float:
    """From the failure to training, the search for the place in the plan not counted.

    Every worker reads the model. Of the checkpoint it reads and hashes its share; under ZeRO 0 all of it.
    """
    state = (MASTER + ADAM) * model.parameters
    mine = state if stage == 0 else state / workers
    loaded = HALF * model.parameters * (1 if stage == 3 else workers)  # under ZeRO 3 worker 0 reads it for all
    reading = (mine * workers + loaded) / storage_rate(workers, hardware)
    fixed = hardware.detect_seconds + cost("restart") + workers * hardware.start_per_worker
    return fixed + max(reading, mine / cost("sha256"))


@dataclass(frozen=True)
class Run:
    """A whole training. `seconds` inf: failures come faster than it gets on."""

    seconds: float
    failures: int
    lost: float
    restarting: float
    replanning: float
    checkpointing: float
    steps: int


def simulate_run(
    model: Model, workers: int, stage: int, votes: float, step: Step, hardware: Hardware, job: Job, seed: int
) -> Run:
    """Useful seconds from failure to failure. A failure loses the work since the newest checkpoint, a notice none."""
    random = np.random.default_rng([seed, 3, workers])
    steps = math.ceil(votes / job.rows_per_step) * job.epochs
    kept = checkpoints(model, workers, step, hardware, job)
    slower = 1 + kept.copy / kept.every
    work, nodes = steps * step.seconds * slower, math.ceil(workers / hardware.gpus_per_node)
    rates = np.array([nodes / hardware.node_mtbf_hours, nodes / hardware.spot_hours]) / 3600
    restart = restart_seconds(model, workers, stage, hardware)
    done = total = lost = replanning = 0.0
    failures = 0
    while failures < MOST_FAILURES:
        until = random.exponential(1 / rates.sum())
        if done + until >= work:
            total += work - done
            return Run(total, failures, lost, failures * restart, replanning, work - work / slower, steps)
        failures += 1
        thrown = 0.0 if random.random() < rates[1] / rates.sum() else min(done + until, _thrown(kept, random))
        done = done + until - thrown
        rows_in_epoch = (done / work * job.epochs) % 1 * votes
        total += until + restart + rows_in_epoch * cost("plan")
        lost, replanning = lost + thrown, replanning + rows_in_epoch * cost("plan")
    return Run(math.inf, failures, lost, failures * restart, replanning, 0.0, steps)


def _thrown(kept: Checkpoints, random: np.random.Generator) -> float:
    """Somewhere between two checkpoints; the newer does not count before it is written."""
    return float(random.uniform(0, kept.every)) + kept.write
