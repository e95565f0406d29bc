"""A cluster's whole bill: every stage of one log and one model on so many workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from scale_costs import MODELS, Hardware, Job, Model
from scale_limits import pool_memory, step_sum_bytes
from scale_stages import Plant, Stage, data_stages, reference_fits, storage
from scale_training import (
    HALF,
    Checkpoints,
    Run,
    Step,
    checkpoints,
    gpu_memory,
    simulate_run,
    simulate_step,
    stage_for,
)

WORKERS = tuple(2**n for n in range(11))
VOTES = (1e6, 1e7, 1e8, 1e9, 1e10)
DAY = 86_400
WASTE = 2.0


@dataclass(frozen=True)
class Plan:
    """What one cluster does with one log and one model."""

    votes: float
    model: Model
    workers: int
    stage: int
    gpu_bytes: float
    host_bytes: float
    sum_bytes: int
    step: Step
    checkpoints: Checkpoints
    run: Run
    stages: list[Stage]
    storage: dict[str, float]
    reference_fits: bool
    price: float

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that is the model's own arithmetic at the assumed utilisation."""
        return self.step.ideal * self.run.steps / self.run.seconds

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Of the two stages that use GPUs."""
        reference = sum(stage.gpu_hours for stage in self.stages)
        return {"reference": reference, "training": self.run.seconds * self.workers / 3600}

    @property
    def cost(self) -> float:
        """Of the GPU-hours."""
        return self.price * sum(self.gpu_hours.values())

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, in order."""
        found = {stage.name: stage.seconds for stage in self.stages}
        return {**{n: s for n, s in found.items() if n != "register"}, "train": self.run.seconds,
                "register": found["register"]}  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinity, which is no JSON, as null."""
        run = {name: value if math.isfinite(value) else None for name, value in asdict(self.run).items()}
        finished = math.isfinite(self.run.seconds)
        bill = {"seconds": self.seconds, "gpu_hours": self.gpu_hours, "cost": self.cost} if finished else {}
        return asdict(self) | {"model": self.model.name, "run": run, "efficiency": self.efficiency} | bill


def plan(votes: float, model: Model, workers: int, hardware: Hardware, job: Job, seed: int) -> Plan | None:
    """None: the model does not fit on so many."""
    stage = stage_for(model, workers, hardware, job, seed)
    if stage is None:
        return None
    plant = Plant(votes, model, workers, hardware, job)
    step = simulate_step(model, workers, stage, hardware, job, seed)
    run = simulate_run(model, workers, stage, votes, step, hardware, job, seed)
    copied = 12 * model.parameters / workers  # a checkpoint in memory
    built = HALF * model.parameters / (workers if stage == 3 else 1)
    return Plan(
        votes=votes,
        model=model,
        workers=workers,
        stage=stage,
        gpu_bytes=gpu_memory(stage, model, workers, job),
        host_bytes=pool_memory(job) + plant.cut.plan_memory + copied + built,
        sum_bytes=step_sum_bytes(job.rows_per_step),
        step=step,
        checkpoints=checkpoints(model, workers, step, hardware, job),
        run=run,
        stages=data_stages(plant),
        storage=storage(plant),
        reference_fits=reference_fits(model, hardware),
        price=hardware.price,
    )


def all_plans(votes: float, model: Model, hardware: Hardware, job: Job, seed: int) -> Iterator[Plan]:
    """On every number of workers that the model fits on."""
    found = (plan(votes, model, workers, hardware, job, seed) for workers in WORKERS)
    return (one for one in found if one is not None)


def chosen(votes: float, model: Model, hardware: Hardware, job: Job, seed: int, days: float) -> Plan:
    """Of the clusters whose training takes at most WASTE times the fewest GPU-hours: the smallest that is done in so
    many days, else the quickest. Raises ValueError: the model fits on none.
    """
    plans = list(all_plans(votes, model, hardware, job, seed))
    if not plans:
        raise ValueError(f"{model.name} fits on no cluster of up to {WORKERS[-1]} workers: give --gpu-memory-gb more")
    fewest = min(one.gpu_hours["training"] for one in plans)
    thrifty = [one for one in plans if one.gpu_hours["training"] <= WASTE * fewest]
    in_time = [one for one in thrifty if one.run.seconds <= days * DAY]
    return in_time[0] if in_time else min(thrifty, key=lambda one: one.run.seconds)


def chosen_plans(hardware: Hardware, job: Job, seed: int, days: float, votes: tuple[float, ...]) -> list[Plan]:
    """For each log and model."""
    return [chosen(count, model, hardware, job, seed, days) for count in votes for model in MODELS]
