"""The stages before and after training: seconds, CPU-hours and bytes of each, and what each is bound by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scale_costs import GB, Hardware, Job, Model, cost
from scale_limits import Cut
from scale_training import HALF, storage_rate

from bco_ray.scoring.reference import EMBEDDING_WIDTH
from bco_ray.scoring.spread import MOST_IN_FLIGHT, SHARDS_PER_TASK

RECORDS_RATIO = 0.4
"""Settled Parquet by log: a guess, as text packs."""


@dataclass(frozen=True)
class Stage:
    """`serial`: seconds of it that one process spends, however many workers there are."""

    name: str
    seconds: float
    serial: float
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Plant:
    """A cluster and what it is given."""

    votes: float
    model: Model
    workers: int
    hardware: Hardware
    job: Job

    @property
    def nodes(self) -> int:
        """With GPUs; their cores do the data work."""
        return math.ceil(self.workers / self.hardware.gpus_per_node)

    @property
    def cores(self) -> float:
        """For tasks of Ray Data."""
        return self.nodes * self.hardware.cores_per_node

    @property
    def cut(self) -> Cut:
        """Of its log."""
        return Cut.of(self.votes, self.job)

    @property
    def log_bytes(self) -> float:
        """As JSON."""
        return self.votes * self.job.vote_bytes

    @property
    def scored_bytes(self) -> float:
        """Shards as training reads them."""
        return self.votes * self.job.mean_tokens * cost("shard_bytes")

    @property
    def prompt_bytes(self) -> float:
        """Embeddings while the density ratio is fitted, if every vote has a prompt of its own."""
        return self.votes * 4 * EMBEDDING_WIDTH


def commit_seconds(size: float, parts: float, hardware: Hardware) -> float:
    """Of `files.commit_directory`, in one process: sync every file, then read and hash each."""
    return size / min(cost("sha256"), GB * hardware.stream_gb) + parts * hardware.file_seconds


def spread_seconds(cpu_seconds: float, size: float, tasks: float, plant: Plant) -> float:
    """Work that any number of tasks share: bound by cores, by storage, or by handing out tasks."""
    busy = min(tasks, plant.cores)
    return max(
        cpu_seconds / busy, size / storage_rate(plant.workers, plant.hardware), tasks * plant.hardware.task_seconds
    )


def settle(plant: Plant) -> Stage:
    """Read, parse, shuffle by prompt, settle, write parts, commit."""
    cpu, size = plant.log_bytes * cost("settle"), plant.log_bytes * (3 + RECORDS_RATIO)  # read, spilled, read again
    serial = cost("start_data") + commit_seconds(plant.log_bytes * RECORDS_RATIO, plant.cut.parts, plant.hardware)
    return Stage("settle", serial + spread_seconds(cpu, size, plant.cut.buckets, plant), serial, cpu / 3600)


def tokenize(plant: Plant) -> Stage:
    """Part by part."""
    cpu, size = plant.log_bytes * cost("tokenize"), plant.log_bytes * RECORDS_RATIO + plant.scored_bytes
    return Stage("tokenize", spread_seconds(cpu, size, plant.cut.parts, plant), 0.0, cpu / 3600)


def reference(plant: Plant) -> Stage:
    """One forward per row, a whole model on each GPU, as many actors as workers (at most one per part)."""
    hardware = plant.hardware
    flops = 2 * plant.model.parameters * plant.votes * plant.job.mean_tokens
    busy = min(plant.workers, plant.cut.parts)
    working = flops / (hardware.gpu_flops * hardware.mfu) / busy
    loading = HALF * plant.model.parameters * busy / storage_rate(plant.workers, hardware)
    handing_out = plant.cut.parts * hardware.task_seconds
    seconds = max(working, handing_out) + loading
    return Stage("reference", seconds, handing_out, gpu_hours=seconds * plant.workers / 3600)


def reference_fits(model: Model, hardware: Hardware) -> bool:
    """The scorer is one process with one GPU: nothing shares a model out before training."""
    return HALF * model.parameters <= 0.9 * hardware.gpu_memory_gb * GB


def fit(plant: Plant) -> Stage:
    """Density ratio: passes of at most MOST_IN_FLIGHT tasks over all prompts."""
    cpu, busy = plant.votes * cost("fit"), min(MOST_IN_FLIGHT, plant.cores)
    passes = cost("fit_passes") + 4  # survey, draw, histogram, weigh
    rate = GB * min(busy * plant.hardware.stream_gb, plant.hardware.storage_gb)
    handing_out = passes * plant.cut.parts / SHARDS_PER_TASK * plant.hardware.task_seconds
    return Stage("fit", max(cpu / busy, passes * plant.prompt_bytes / rate, handing_out), handing_out, cpu / 3600)


def weigh(plant: Plant) -> Stage:
    """Weights into the final shards, and their commit."""
    serial = commit_seconds(plant.scored_bytes, plant.cut.parts, plant.hardware)
    size = 2 * plant.scored_bytes + plant.prompt_bytes
    return Stage("weigh", serial + spread_seconds(0.0, size, plant.cut.parts, plant), serial)


def register(plant: Plant) -> Stage:
    """Worker 0 writes the model, the registry copies and hashes it; the other workers are gone by then."""
    size = HALF * plant.model.parameters
    seconds = 3 * size / (GB * plant.hardware.stream_gb)
    return Stage("register", seconds, seconds)


def data_stages(plant: Plant) -> list[Stage]:
    """All but training, in order."""
    return [stage(plant) for stage in (settle, tokenize, reference, fit, weigh, register)]


def storage(plant: Plant) -> dict[str, float]:
    """Bytes on disk by what they are; two checkpoints are kept, and a third is being written."""
    return {
        "log": plant.log_bytes,
        "records": plant.log_bytes * RECORDS_RATIO,
        "reference": plant.scored_bytes + plant.prompt_bytes,
        "scored": plant.scored_bytes,
        "checkpoints": 3 * 12 * plant.model.parameters,
        "model": 2 * HALF * plant.model.parameters,
    }
