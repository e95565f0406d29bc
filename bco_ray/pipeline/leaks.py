"""Whether a version, or one that it was trained from, may have been trained on the votes that a job holds out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bco_ray.config import JobSpec, load_spec
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import files
from bco_ray.storage.ancestry import ancestry
from bco_ray.storage.objects import is_uri
from bco_ray.storage.registry import LINEAGE, ModelVersion, Registry

Lineage = dict[str, Any]


def leak_of(job: ResolvedJob, version: ModelVersion) -> str | None:
    """Why it may have been, None if it was not. Held out here is held out of a training that held out as much: the
    split goes by the prompt's hash. So the least that any training on its way has held out counts.
    """
    asked = job.spec.data.validation
    least, of = asked, version.reference
    for name, lineage in _ancestry(job, version.reference):
        if lineage is None:
            return f"{version.reference} was trained from {name}, which is gone: who knows what that was trained on."
        if lineage.get("run") is None or lineage.get("scored") == job.scored_directory.name:
            continue
        share = _held_out(job, lineage)
        if share is None:
            return f"{name}: its run is not in this storage, so it may have been trained on these votes."
        least, of = min((least, of), (share, name), key=lambda found: found[0])
    if least == asked:
        return None
    via = "" if of == version.reference else f", which {version.reference} goes back to,"
    return (
        f"{of}{via} was trained with data.validation {least:g}, less than the {asked:g} here: it may have been trained "
        f"on some of these votes. {f'Evaluate with {least:g}' if least else 'Train from a version that held out some'}."
    )


def _ancestry(job: ResolvedJob, model: str | None) -> Iterator[tuple[str, Lineage | None]]:
    """Name and lineage of a model, of what it was trained from, and so on; None for a version that is gone."""
    seen = set[str]()
    while model is not None and model not in seen:
        versions = ancestry(Registry(job.storage), model)
        found: list[tuple[str, Lineage | None]] = [(version.reference, version.lineage) for version in versions]
        found = found or [(model, _of_directory(model))]
        yield from found
        seen |= {model, *(name for name, _ in found)}
        last = found[-1][1]
        model = last.get("parent") if last else None


def _of_directory(model: str) -> Lineage | None:
    """Of a version that was exported, or of the model that a run has left; {} for what was not trained here."""
    if not is_uri(model) and not Path(model).is_absolute():
        return None
    place = files.path_of(model)
    if (place / LINEAGE).is_file():
        found: Lineage = files.read_json(place / LINEAGE)
        return found
    spec = _spec(place.parent)
    return {"run": place.parent.name, "validation": spec.data.validation, "parent": spec.model.base} if spec else {}


def _held_out(job: ResolvedJob, lineage: Lineage) -> float | None:
    """By the lineage, or by the run's spec where that is older than this entry."""
    if (share := lineage.get("validation")) is not None:
        return float(share)
    spec = _spec(job.storage / "runs" / str(lineage["run"]))
    return spec.data.validation if spec else None


def _spec(run: Path) -> JobSpec | None:
    path = run / "spec.resolved.yaml"
    return load_spec(path) if path.is_file() else None
