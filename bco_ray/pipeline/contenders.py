"""Who takes part in an evaluation: the version and whom it is compared with, and how to read their rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bco_ray.config import JobSpec, load_spec
from bco_ray.errors import SpecError
from bco_ray.models import loading
from bco_ray.objective import LOSSES, RewardShift, SourceOffsets
from bco_ray.pipeline.leaks import leak_of
from bco_ray.pipeline.resolve import resolve_model
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.source_shift import offsets_of
from bco_ray.storage import files
from bco_ray.storage.aliases import PROD
from bco_ray.storage.evaluations import Role
from bco_ray.storage.registry import ModelVersion, Registry


@dataclass(frozen=True)
class Contender:
    """`name`: `bot/3`, or a directory. `role`: why it takes part; None: it is the model that is evaluated.

    `delta`: the reward shift its training ended with; None if that is not known or was measured by something else.
    `is_reference`: its rewards are 0. `leaks`: why it may have been trained on the held-out votes. `offsets`: of each
    source's delta, where it was trained with them and `delta` is known.
    """

    name: str
    role: Role | None
    directory: str
    delta: float | None
    is_reference: bool
    leaks: str | None
    offsets: SourceOffsets | None = None


def contenders(job: ResolvedJob, version: ModelVersion, against: Sequence[str]) -> tuple[Contender, list[Contender]]:
    """The model, and those it is compared with: the ones named, else the base, what is live of the name, and the
    reference where that is neither.

    Raises SpecError for one that reads other tokens, or where none is left that is not the model itself; ModelError,
    StorageError.
    """
    model = _registered(job, version, None)
    found = _named(job, against) if against else _usual(job, version)
    others: dict[str, Contender] = {}
    for other in found:
        if other.directory != model.directory:
            others.setdefault(other.directory, other)
    if against and not others:
        raise SpecError(f"--against: {', '.join(against)}: that is {model.name} itself; name another.")
    for contender in (model, *others.values()):
        _require_same_tokens(job, contender)
    return model, list(others.values())


def final_delta(run: Path, spec: JobSpec) -> float:
    """The shift after the last step, as the trainer left it; 0 for a loss without one."""
    outcome = files.read_json(run / "outcome.json")
    return RewardShift.from_state(outcome["shift"]).delta if LOSSES[spec.objective.loss].shifted else 0.0


def _require_same_tokens(job: ResolvedJob, contender: Contender) -> None:
    """The votes are tokens of the base."""
    if loading.vocabulary_size(contender.directory) != loading.vocabulary_size(job.model_directory):
        raise SpecError(
            f"{contender.name}: its vocabulary is not that of {job.spec.model.base}, so it cannot be measured on the "
            "same votes; name a model akin to it."
        )


def _usual(job: ResolvedJob, version: ModelVersion) -> Iterator[Contender]:
    yield _contender(job, job.spec.model.base, "base")
    registry = Registry(job.storage)
    live = registry.aliases(version.name).get(PROD)
    if live is not None:
        yield _registered(job, registry.get(version.name, live), "live")
    if job.spec.model.reference is not None:
        yield _contender(job, job.spec.model.reference, "reference")


def _named(job: ResolvedJob, names: Sequence[str]) -> Iterator[Contender]:
    for name in names:
        yield _contender(job, name, "named")


def _contender(job: ResolvedJob, name: str, role: Role) -> Contender:
    directory, exact = resolve_model(name, job.storage)
    if directory != exact:
        return _registered(job, Registry(job.storage).resolve(exact), role)
    return Contender(exact, role, directory, None, _is_reference(job, directory), None)


def _registered(job: ResolvedJob, version: ModelVersion, role: Role | None) -> Contender:
    directory = str(version.directory)
    run = job.storage / "runs" / str(version.lineage.get("run"))
    known = (run / "spec.resolved.yaml").is_file() and (run / "outcome.json").is_file()
    spec = load_spec(run / "spec.resolved.yaml") if known else None
    delta = final_delta(run, spec) if spec is not None and _measured_alike(job, version, spec) else None
    offsets = None if delta is None else offsets_of(run)
    leaks = leak_of(job, version)
    return Contender(version.reference, role, directory, delta, _is_reference(job, directory), leaks, offsets)


def _measured_alike(job: ResolvedJob, version: ModelVersion, spec: JobSpec) -> bool:
    """Whether the run's rewards are those of this job: the same reference, the same beta."""
    same = version.lineage.get("reference_fingerprint") == job.reference_fingerprint
    return same and spec.objective.beta == job.spec.objective.beta


def _is_reference(job: ResolvedJob, directory: str) -> bool:
    if files.path_of(directory).resolve() == files.path_of(job.reference_directory).resolve():
        return True
    return loading.fingerprint(directory) == job.reference_fingerprint
