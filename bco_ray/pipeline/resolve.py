"""From a spec to a resolved one: references pinned, `auto` replaced, so that it means the same tomorrow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bco_ray.config import EvaluationSpec, JobSpec, ScoringSpec
from bco_ray.config.spec import KEPT, ShiftSpec
from bco_ray.errors import SpecError
from bco_ray.models import loading
from bco_ray.objective import LOSSES
from bco_ray.pipeline.log import resolve_log
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.rounds import kept_reference, require_kept, require_known_policy
from bco_ray.storage import files
from bco_ray.storage.local_copies import local_copy
from bco_ray.storage.objects import is_uri
from bco_ray.storage.registry import Registry
from bco_ray.text import load_tokenizer

LARGE_MODEL_WEIGHTS = 3_000_000_000


def resolve(spec: JobSpec) -> ResolvedJob:
    """Pin what the spec refers to. Raises SpecError, DataError or ModelError naming the field."""
    job = outline(spec)
    prints = [loading.fingerprint(directory) for directory in (job.model_directory, job.reference_directory)]
    if spec.model.reference == KEPT:
        require_kept(job.spec.model.base, job.storage, prints[1])
    return replace(job, model_fingerprint=prints[0], reference_fingerprint=prints[1])


def outline(spec: JobSpec) -> ResolvedJob:
    """As `resolve`, but no weights are read: without fingerprints the job's directories have no names yet."""
    storage = files.storage_directory(spec.output.storage)
    directory, reference = resolve_model(spec.model.base, storage, revision=spec.model.revision)
    reference_directory, reference_name = _resolve_reference(spec, storage, directory, reference)
    require_known_policy(spec.rounds, reference, None if reference == directory else reference)
    load_tokenizer(local_copy(directory, weights=False))  # a model that cannot be used is better refused now
    loss = LOSSES[spec.objective.loss]
    older = spec.rounds.older > 0
    log = resolve_log(spec.data, storage, reference, demonstrations=loss.ups_suffice, older=older)
    bf16 = _wants_bf16(spec)
    spec = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"base": reference, "revision": None, "reference": reference_name}),
            "data": log.data,
            "scoring": _resolve_scoring(spec, storage),
            "objective": spec.objective.model_copy(
                update={
                    "shift": _resolve_shift(spec.objective.shift),
                    "desirable_weight": _number(spec.objective.desirable_weight, loss.gain),
                    "undesirable_weight": _number(spec.objective.undesirable_weight, loss.gain),
                }
            ),
            "training": spec.training.model_copy(
                update={
                    "learning_rate": auto_learning_rate(spec, directory) * spec.training.learning_rate_multiplier,
                    "learning_rate_multiplier": 1.0,
                    "precision": "bf16" if bf16 else "fp32",
                }
            ),
            "evaluation": _resolve_evaluation(spec.evaluation),
            "output": spec.output.model_copy(update={"storage": str(storage)}),
        }
    )
    return ResolvedJob(spec, storage, directory, "", reference_directory, "", log, bf16)


def _resolve_reference(spec: JobSpec, storage: Path, base: str, name_of_base: str) -> tuple[str, str | None]:
    """(directory, name to record) of the frozen model. Raises SpecError if it reads other tokens than the base."""
    if spec.model.reference is None:
        return base, None
    asked = spec.model.reference
    directory, name = resolve_model(kept_reference(name_of_base, storage) if asked == KEPT else asked, storage)
    if directory == base and asked == KEPT:
        return base, None
    if loading.vocabulary_size(directory) != loading.vocabulary_size(base):
        raise SpecError(f"model.reference: {directory}: its vocabulary is not that of model.base; name one akin to it.")
    return directory, name


def resolve_model(base: str, storage: Path, *, revision: str | None = None) -> tuple[str, str]:
    """(directory, the exact reference to record). A path wins over a registered name, that over a hub repository.

    A hub repository becomes its local snapshot, whose path ends in the commit. Raises ModelError.
    """
    path = files.path_of(base).expanduser()
    if is_uri(base):
        loading.check_model_directory(path)
    if path.exists():
        loading.check_model_directory(path.resolve())
        return str(path.resolve()), str(path.resolve())
    name = base.partition("@")[0].partition("/")[0]
    registry = Registry(storage)
    if "@" in base or registry.versions(name):
        version = registry.resolve(base)
        return str(version.directory), version.reference
    if path.is_absolute() or base.startswith((".", "~")):
        loading.check_model_directory(path)
    snapshot = str(loading.download(base, revision))
    return snapshot, snapshot


def auto_learning_rate(spec: JobSpec, directory: str) -> float:
    """LoRA 1e-5; full fine-tuning 5e-7 from 3B weights on, 1e-6 below (spec section 2)."""
    if spec.training.learning_rate != "auto":
        return spec.training.learning_rate
    if spec.model.adapter is not None:
        return 1e-5
    return 5e-7 if loading.parameter_count(directory) >= LARGE_MODEL_WEIGHTS else 1e-6


def _resolve_scoring(spec: JobSpec, storage: Path) -> ScoringSpec:
    """With the embedding model's directory and the classifier's absolute path. Raises SpecError or ModelError."""
    scoring, changes = spec.scoring, {}
    if scoring.length_matching == "on" and LOSSES[spec.objective.loss].units != "rows":
        raise SpecError(
            f"scoring.length_matching: {spec.objective.loss} does not train on single votes of both kinds, whose "
            "lengths could be matched; leave it off."
        )
    if LOSSES[spec.objective.loss].units == "pairs":  # both rows of a pair have one prompt: nothing to match
        if scoring.matching == "on":
            raise SpecError(
                f"scoring.matching: {spec.objective.loss} trains on pairs, whose prompts match; leave it off."
            )
        changes["matching"] = "off"
    if scoring.embedding != "reference":
        changes["embedding"] = resolve_model(scoring.embedding, storage)[0]
    if scoring.classifier is not None:
        path = files.path_of(scoring.classifier).expanduser().resolve()
        path = path / "matching.json" if path.is_dir() else path
        if not path.is_file():
            raise SpecError(f"scoring.classifier: {path}: no such file; name a matching.json of an earlier run.")
        changes["classifier"] = str(path)
    return scoring.model_copy(update=changes)


def _resolve_shift(shift: ShiftSpec) -> ShiftSpec:
    start = None if shift.start is None else str(files.path_of(shift.start).expanduser().resolve())
    return shift.model_copy(update={"start": start})


def _resolve_evaluation(evaluation: EvaluationSpec) -> EvaluationSpec:
    """With the absolute path of its prompts."""
    if evaluation.regression is None:
        return evaluation
    prompts = files.path_of(evaluation.regression).expanduser().resolve()
    return evaluation.model_copy(update={"regression": str(prompts)})


def _wants_bf16(spec: JobSpec) -> bool:
    has_gpu = spec.training.resources_per_worker.get("GPU", 0) > 0
    return spec.training.precision == "bf16" or (spec.training.precision == "auto" and has_gpu)


def _number(value: float | str, default: float) -> float:
    return default if isinstance(value, str) else value
