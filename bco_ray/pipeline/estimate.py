"""What a job would take, before anything is spent: tokens, steps, memory, time. No weights are read, no Ray started.

`python -m bco_ray.pipeline.estimate` reads a spec as JSON on stdin and writes the estimate as JSON on stdout; exit code
2 and `{"error": {"code", "message"}}` if there is something wrong with spec, log or model.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bco_ray.config.environment import prepare_environment

prepare_environment()  # before anything imports ray

import numpy as np  # noqa: E402
from pydantic import BaseModel, ConfigDict  # noqa: E402

from bco_ray.config import JobSpec, parse_spec  # noqa: E402
from bco_ray.errors import DataError, ModelError, SpecError  # noqa: E402
from bco_ray.models.sizes import ModelSize  # noqa: E402
from bco_ray.objective import LOSSES, Units  # noqa: E402
from bco_ray.pipeline.memory import Layout, memory_of  # noqa: E402
from bco_ray.pipeline.pace import FORWARD, TRAINING, Pace, pace_here  # noqa: E402
from bco_ray.pipeline.resolve import outline  # noqa: E402
from bco_ray.pipeline.resolved import ResolvedJob  # noqa: E402
from bco_ray.pipeline.sampling import LogSample, sample_log  # noqa: E402
from bco_ray.scoring.tokens import Tokenizing  # noqa: E402
from bco_ray.storage.scored import pair_places  # noqa: E402
from bco_ray.training.plan import Plan, ShardCounts, plan_of  # noqa: E402

USABLE_SHARE, LABEL_RATES, LONG_SHARE = 0.8, (0.05, 0.95), 0.5
"""Outside of these there is a warning."""

NICE = 10
"""So much does the process give way to the server that started it."""


class Estimate(BaseModel):
    """Of one job. `rows`: votes in the log; `usable_rows`: those that are scored, held-out ones included.

    `label_rate`: the share of thumbs-up among the usable ones. `exact`: the whole log was read; else the numbers of
    rows, tokens and steps come from a sample. `memory`: bytes per worker (pipeline.memory). `seconds`: of the reference
    pass and the training steps (null: not known), `basis` says where the pace comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    usable_rows: int
    label_rate: float | None
    tokens_per_row: float | None
    tokens_per_epoch: int
    trained_tokens: int
    steps: int
    exact: bool
    parameters: int
    trained_parameters: int
    memory: dict[str, int]
    workers: int
    seconds: float | None
    gpu_hours: float | None
    basis: str
    warnings: list[str]


def estimate(spec: JobSpec, *, pace: Pace | None = None) -> Estimate:
    """What the job would take. `pace` None: from earlier trainings in the same storage, if there were any.

    Elastic workers are reckoned at the fewest. Raises SpecError, DataError or ModelError.
    """
    job = outline(spec)
    adapter = None if spec.model.adapter is None else spec.model.adapter.model_dump()
    size = ModelSize.of(job.model_directory, adapter)
    own = job.reference_directory == job.model_directory
    reference = size if own and adapter is None else ModelSize.of(job.reference_directory)
    counts = Counts.of(sample_log(job.log.without_older(), _tokenizing(job)), job)
    on_gpu = job.device == "cuda"
    pace = pace or pace_here(job.storage, on_gpu=on_gpu, weights=size.weights, adapter=adapter is not None)
    seconds, gpu_hours = _time(job, counts, size, reference, pace)
    return Estimate(
        rows=round(counts.sample.votes),
        usable_rows=round(counts.usable),
        label_rate=counts.label_rate,
        tokens_per_row=counts.scored_tokens / counts.usable if counts.usable else None,
        tokens_per_epoch=counts.tokens_per_epoch,
        trained_tokens=counts.tokens_per_epoch * counts.plan.epochs,
        steps=counts.plan.total_steps,
        exact=counts.sample.whole,
        parameters=size.weights,
        trained_parameters=size.trained,
        memory=memory_of(size, layout_of(job), reference if job.reference == "live" else None),
        workers=spec.training.workers[0],
        seconds=seconds,
        gpu_hours=gpu_hours,
        basis=pace.basis if pace else f"no training has been finished here yet on {'a GPU' if on_gpu else 'CPUs'}",
        warnings=[*_warnings(counts), *_notes(job)],
    )


@dataclass(frozen=True)
class Counts:
    """What the sample means for the job. `tokens_per_epoch`: of what is trained on; `scored_tokens`: of all usable."""

    sample: LogSample
    plan: Plan
    tokens_per_epoch: int
    units: Units

    @classmethod
    def of(cls, sample: LogSample, job: ResolvedJob) -> Counts:
        """As the training plan counts."""
        training, units = job.spec.training, LOSSES[job.spec.objective.loss].units
        chosen, rejected, tokens = _units(sample, units)
        plan = plan_of(
            [ShardCounts(round(chosen), round(rejected))], units, rows=training.rows_per_step,
            epochs=training.num_train_epochs, seed=training.seed,
        )  # fmt: skip
        return cls(sample, plan, round(tokens), units)

    @property
    def usable(self) -> float:
        """Votes that are scored."""
        return float(self.sample.stands_for_N.sum())

    @property
    def scored_tokens(self) -> float:
        """Tokens of these."""
        return float(self.sample.stands_for_N @ self.sample.tokens["n_tokens"].to_numpy())

    @property
    def label_rate(self) -> float | None:
        """Share of thumbs-up."""
        up_N = self.sample.tokens["label"].to_numpy(zero_copy_only=False).astype(bool)
        return float(self.sample.stands_for_N[up_N].sum() / self.usable) if self.usable else None


def layout_of(job: ResolvedJob) -> Layout:
    """How the job's training computes. The longest row there may be fits into any micro-batch; a pair is two."""
    training = job.spec.training
    longest = training.max_length * (2 if LOSSES[job.spec.objective.loss].units == "pairs" else 1)
    return Layout(
        workers=training.workers[0],
        zero_stage=training.deepspeed.zero_stage,
        offload=training.deepspeed.offload,
        number_bytes=2 if job.bf16 else 4,
        quantization=job.spec.model.quantization,
        device=job.device,
        tokens=max(job.micro_batch_tokens, longest),
        row_tokens=training.max_length,
        checkpointing=job.gradient_checkpointing,
        deepspeed=training.deepspeed.config or {},
    )


def _tokenizing(job: ResolvedJob) -> Tokenizing:
    spec = job.spec
    return Tokenizing(job.model_directory, spec.training.max_length, spec.data.validation, with_text=False)


def _units(sample: LogSample, units: Units) -> tuple[float, float, float]:
    """(chosen, rejected, their tokens) in the log's train rows; pairs and lone ups count as chosen (shard_reader)."""
    table, weight_N = sample.tokens, sample.stands_for_N
    train_N = np.array([split == "train" for split in table["split"].to_pylist()], bool)
    up_N = table["label"].to_numpy(zero_copy_only=False).astype(bool)
    tokens_N = weight_N * table["n_tokens"].to_numpy()
    up_U, down_D = np.flatnonzero(train_N & up_N), np.flatnonzero(train_N & ~up_N)
    if units == "rows":
        return weight_N[up_U].sum(), weight_N[down_D].sum(), tokens_N[train_N].sum()
    if units == "chosen":
        return weight_N[up_U].sum(), 0.0, tokens_N[up_U].sum()
    hash_N = table["prompt_hash"].to_numpy()
    places = pair_places(hash_N[up_U], hash_N[down_D])
    both_2P = np.concatenate([up_U[places[:, 0]], down_D[places[:, 1]]])
    return weight_N[both_2P].sum() / 2, 0.0, tokens_N[both_2P].sum()


def _time(
    job: ResolvedJob, counts: Counts, size: ModelSize, reference: ModelSize, pace: Pace | None
) -> tuple[float | None, float | None]:
    """(seconds, GPU hours) of the reference pass and then of training, each divided over its own workers."""
    if pace is None:
        return None, None
    training, scoring = job.spec.training.workers[0], job.spec.scoring.workers[1]
    trained = TRAINING * size.weights * counts.tokens_per_epoch * counts.plan.epochs / pace.flops_per_second
    scored = FORWARD * reference.weights * counts.scored_tokens / pace.flops_per_second
    gpu_seconds = (trained + scored) * job.gpus_per_worker
    return trained / training + scored / scoring, gpu_seconds / 3600


def _warnings(counts: Counts) -> Iterator[str]:
    """What would make the job fail, or hardly worth its time."""
    sample, plan = counts.sample, counts.plan
    share = counts.usable / sample.votes if sample.votes else 0.0
    if share < USABLE_SHARE:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in list(sample.drops.items())[:3]) or "none read"
        yield f"{share:.0%} of the votes can be used ({reasons} among those read); bco data check says more."
    if sample.too_long > LONG_SHARE:
        yield f"{sample.too_long:.0%} of the votes are longer than training.max_length and will be left out."
    if sample.unjoined:
        yield f"{sample.unjoined:,} votes were passed over: their answers are further on in the log."
    if not sample.whole and (again := sum(sample.drops.get(name, 0) for name in ("superseded", "duplicate"))):
        yield f"{again:,} votes of the sample were given again later: the log has more such votes than a sample shows."
    yield from _class_warnings(counts.label_rate, counts.units)
    if plan.rows < plan.rows_per_step:
        yield f"an epoch has {plan.rows:,} {counts.units}, and one step takes {plan.rows_per_step:,}."


def _class_warnings(rate: float | None, units: Units) -> Iterator[str]:
    if units == "chosen":
        if rate == 0.0:
            yield "all usable votes are thumbs-down: sft trains on thumbs-up alone. Check data.label_map."
    elif rate in (0.0, 1.0):
        kind, alone = (
            ("up", ", or train with objective.loss: sft (of a job: method supervised)") if rate else ("down", "")
        )
        yield f"all usable votes are thumbs-{kind}: training needs both. Check data.label_map{alone}."
    elif rate is not None and not LABEL_RATES[0] <= rate <= LABEL_RATES[1]:
        yield f"{rate:.1%} of the usable votes are thumbs-up: the other class will hardly be learned from."


def _notes(job: ResolvedJob) -> Iterator[str]:
    least, most = job.spec.training.workers
    if not job.micro_batch_tokens:
        yield (
            f"training.max_tokens_per_micro_batch is auto: memory is that of the smallest, {layout_of(job).tokens:,} "
            "tokens; training finds the largest that fits."
        )
    if job.mixing.draws:
        more = job.mixing.older / (1 - job.mixing.older)
        yield f"rounds.older: up to {more:.0%} more rows, tokens and steps come from older votes; not counted here."
    if least < most:
        yield f"training.num_workers is {least} to {most}: reckoned with {least}."


def main() -> int:
    """The exit code: 0, or 2 with an error on stdout; anything else is ours to mend."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaving cleanly: a sample's scratch files go
    os.nice(NICE)
    try:
        found = estimate(parse_spec(json.load(sys.stdin), where="the request"))
    except (SpecError, DataError, ModelError) as error:
        code = type(error).__name__.removesuffix("Error").lower() + "_error"
        print(json.dumps({"error": {"code": code, "message": str(error)}}))  # noqa: T201
        return SpecError.exit_code
    print(found.model_dump_json())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
