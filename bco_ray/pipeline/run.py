"""One training run: each phase leaves something finished on disk, so running again does only what is left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bco_ray.config import dump_spec
from bco_ray.config.spec import ShiftSpec
from bco_ray.errors import SpecError, StorageError
from bco_ray.evaluation.curves import draw_curves
from bco_ray.evaluation.heldout import evaluate_held_out
from bco_ray.objective import LOSSES
from bco_ray.objective.running_moments import shift_from_running_moments
from bco_ray.pipeline.branching import take_over_checkpoint
from bco_ray.pipeline.card import model_card
from bco_ray.pipeline.checking import require_usable
from bco_ray.pipeline.contenders import final_delta
from bco_ray.pipeline.evaluate import evaluate_version
from bco_ray.pipeline.lineage import lineage_of
from bco_ray.pipeline.log import read_log, require_nobody_erased_since
from bco_ray.pipeline.measuring import machine_of
from bco_ray.pipeline.metrics import ScoringMetrics
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.source_shift import fixed_offsets, offsets_of
from bco_ray.pipeline.watching import watching
from bco_ray.scoring.parts import Caches
from bco_ray.scoring.reference import BY_REFERENCE, ReferenceModel
from bco_ray.scoring.score import ScoringJob, require_classes, score
from bco_ray.scoring.weighing import Weighing
from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.registry import ModelVersion, Registry
from bco_ray.storage.scored import ScoredManifest, load_scored
from bco_ray.storage.stores import open_store
from bco_ray.telemetry import Phases
from bco_ray.telemetry.meters import RayMeters
from bco_ray.training.launch import run_training
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

CACHE_FORMAT = 2
"""Part of every cache's address: raised when the same tokens would come out as other numbers."""


@dataclass(frozen=True)
class RunOutcome:
    """What a finished run left behind."""

    job: ResolvedJob
    scored: ScoredManifest
    evaluation: dict[str, Any]
    version: ModelVersion


def run_job(job: ResolvedJob, phases: Phases, project: str | None = None) -> RunOutcome:
    """score -> train -> evaluate -> register, on the connected cluster; what has a gate is evaluated for it too.

    `project`: whose job it is, if it is one of the job service.
    """
    scored = score_job(job, phases)
    train_job(job, phases)
    evaluation = evaluate_job(job, phases)
    version = register_job(job, evaluation, project)
    gate, evaluated = job.spec.gate, Registry(job.storage).evaluations(version.name).latest(version.version)
    if gate is not None and gate.evaluates and evaluated is None:
        evaluate_version(job, scored, version, (), phases)
    return RunOutcome(job, scored, evaluation, version)


def score_job(job: ResolvedJob, phases: Phases) -> ScoredManifest:
    """The scored shards of the job's data, made if they are not there. Raises DataError for a log of no use."""
    records, ups_suffice = read_log(job.log, phases), LOSSES[job.spec.objective.loss].ups_suffice
    require_usable(job.log, records, ups_suffice=ups_suffice)
    with phases.phase("score") as advance:
        if files.is_committed(job.scored_directory):
            advance(1, 1, "was done already")
            scored = load_scored(job.scored_directory)
            require_classes(scored.shards, scored.drops, ups_suffice=ups_suffice)  # it may be of another loss
            return scored
        metrics = ScoringMetrics(RayMeters(), job.run_directory.name)
        scored = score(job.log.directory, scoring_job(job), metrics.counting(advance))
        metrics.scored(scored)
    require_nobody_erased_since(job.log)
    return scored


def scoring_job(job: ResolvedJob) -> ScoringJob:
    """The resolved spec as what a scoring run takes."""
    scoring = job.spec.scoring
    weighing = Weighing(
        mode=scoring.matching,
        target=scoring.target,
        min_density_ratio=scoring.min_density_ratio,
        max_density_ratio=scoring.max_density_ratio,
        classifier=files.path_of(scoring.classifier) if scoring.classifier else None,
    )
    return ScoringJob(
        directory=job.scored_directory,
        inputs=job.scoring_identity,
        caches=caches_for(job),
        model=_reference_model(job),
        tokenizer=job.model_directory,
        max_length=job.spec.training.max_length,
        validation=job.spec.data.validation,
        weighing=weighing,
        num_workers=scoring.workers,
        num_gpus=job.gpus_per_worker,
        ups_suffice=LOSSES[job.spec.objective.loss].ups_suffice,
        length_matching=scoring.length_matching == "on",
        mixing=job.mixing,
    )


def caches_for(job: ResolvedJob) -> Caches:
    """Numbers that any job with the same reference model (and source of embeddings) may use again."""
    named = job.embedding_fingerprint
    reference = {"format": CACHE_FORMAT, **job.weights_identity}
    source = reference if named == BY_REFERENCE else {"format": CACHE_FORMAT, "embedder": named, "bf16": job.bf16}
    root = job.storage / "reference"
    return Caches(root / f"logps-{files.digest(reference)}", root / f"prompts-{files.digest(source)}")


def train_job(job: ResolvedJob, phases: Phases) -> None:
    """The trained model in `<run>/model`; continues from the newest checkpoint if there is one."""
    run = job.run_directory
    with phases.phase("train") as advance:
        if files.is_there(run / "model"):
            advance(1, 1, "was done already")
            return
        busy = "another process is training this run; wait for it, or stop it and try again."
        with files.locked(run / ".lock", busy=busy), watching(run, advance, RayMeters()):
            files.write_bytes(run / "spec.resolved.yaml", dump_spec(job.spec).encode())
            take_over_checkpoint(job)
            run_training(
                train_setup(job),
                num_workers=job.spec.training.workers,
                resources_per_worker=job.spec.training.resources_per_worker,
                max_failures=job.spec.training.max_failures,
            )


def evaluate_job(job: ResolvedJob, phases: Phases) -> dict[str, Any]:
    """Held-out metrics in `<run>/evaluation.json`, and the curves beside them."""
    run, spec = job.run_directory, job.spec
    target = run / "evaluation.json"
    with phases.phase("evaluate"):
        if not target.is_file():
            draw_curves(MetricsLog(run / "metrics.jsonl").read(), run / "curves.png", title=run.name)
            held_out = evaluate_held_out(
                job.scored_directory,
                load_scored(job.scored_directory),
                str(run / "model"),
                beta=spec.objective.beta,
                delta=final_delta(run, spec),
                offsets=offsets_of(run),
                machine=machine_of(job),
            )
            files.write_json(target, {"rows": held_out.rows, **held_out.metrics})
    evaluation: dict[str, Any] = files.read_json(target)
    return evaluation


def register_job(job: ResolvedJob, evaluation: dict[str, Any], project: str | None = None) -> ModelVersion:
    """The run's model as the next version of its name; a second call returns the same version."""
    scored = load_scored(job.scored_directory)
    lineage = lineage_of(job, scored, evaluation, project)
    card = model_card(job.spec, lineage, scored.matching)
    files.write_bytes(job.run_directory / "model" / "README.md", card.encode())
    return Registry(job.storage).register(job.spec.registry_name, job.run_directory / "model", lineage)


def require_fresh_or_resume(job: ResolvedJob, *, resume: bool) -> None:
    """`bco train` does not silently continue a half-done run. Raises SpecError naming the way out."""
    place = job.checkpoint_place
    try:
        started = bool(CheckpointStore(open_store(place)).steps())
    except OSError as error:
        raise StorageError(f"training.checkpoint.storage: {place}: cannot be read: {error}") from None
    if started and not resume and not files.is_there(job.run_directory / "model"):
        raise SpecError(
            f"{job.run_directory}: this run was interrupted. Continue it with --resume, or delete that directory "
            f"and {place} to start over."
        )


def train_setup(job: ResolvedJob) -> TrainSetup:
    """The resolved spec as the numbers a training worker takes. The shards are there."""
    spec, training = job.spec, job.spec.training
    return TrainSetup(
        scored=str(job.scored_directory),
        model=job.model_directory,
        run=str(job.run_directory),
        adapter=spec.model.adapter.model_dump() if spec.model.adapter else None,
        objective=Objective(
            loss=spec.objective.loss,
            beta=spec.objective.beta,
            desirable_weight=float(spec.objective.desirable_weight),
            undesirable_weight=float(spec.objective.undesirable_weight),
            sft_weight=spec.objective.sft_weight,
            label_noise=spec.objective.label_noise,
        ),
        half_life_rows=spec.objective.shift.half_life_rows,
        shift=initial_shift(spec.objective.shift),
        offsets=fixed_offsets(job),
        reference=job.reference,
        reference_model=job.reference_directory,
        learning_rate=float(training.learning_rate),
        lr_scheduler=training.lr_scheduler,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        epochs=training.num_train_epochs,
        rows_per_step=training.rows_per_step,
        max_length=training.max_length,
        max_tokens_per_micro_batch=job.micro_batch_tokens,
        zero_stage=training.deepspeed.zero_stage,
        offload=training.deepspeed.offload,
        deepspeed=training.deepspeed.config,
        gradient_checkpointing=job.gradient_checkpointing,
        quantization=spec.model.quantization,
        bf16=job.bf16,
        device=job.device,
        threads=job.threads,
        trackers=tuple(spec.output.trackers),
        checkpoint_every=training.checkpoint.every_steps,
        checkpoint_keep=training.checkpoint.keep,
        checkpoint_keep_best=training.checkpoint.keep_best,
        checkpoint_best=training.checkpoint.best_by,
        checkpoint_storage=job.checkpoint_place,
        hang_seconds=training.hang_seconds,
        seed=training.seed,
        identity=job.checkpoint_identity,
    )


def initial_shift(spec: ShiftSpec) -> dict[str, Any] | None:
    """The state of a shift that goes on from TRL's `running.json`, if the spec names one. Raises SpecError."""
    if spec.start is None:
        return None
    try:
        state = json.loads(files.path_of(spec.start).read_text())
        return shift_from_running_moments(state, half_life_rows=spec.half_life_rows).state_dict()
    except (OSError, ValueError) as error:
        raise SpecError(f"objective.shift.start: {spec.start}: {error}") from None


def _reference_model(job: ResolvedJob) -> ReferenceModel:
    return ReferenceModel(
        directory=job.reference_directory,
        dtype=job.dtype,
        quantization=job.spec.model.quantization,
        device=job.device,
        max_tokens=job.scoring_tokens,
        threads=job.threads,
        embedding=job.spec.scoring.embedding,
    )
