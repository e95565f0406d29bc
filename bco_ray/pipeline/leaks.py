"""Whether a version, or one that it was trained from, may have been trained on the votes that a job holds out."""

from __future__ import annotations

from bco_ray.config import load_spec
from bco_ray.errors import SpecError
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.ancestry import Lineage, ancestry
from bco_ray.storage.registry import ModelVersion


def leak_of(job: ResolvedJob, version: ModelVersion) -> str | None:
    """Why it may have been, None if it was not. Held out here is held out of a training that held out as much: the
    split goes by the prompt's hash. So the least that any training on its way has held out counts.
    """
    asked = job.spec.data.validation
    least, of = asked, version.reference
    for name, lineage in ancestry(job.storage, version.reference):
        if lineage is None:
            return f"{version.reference} was trained from {name}, which is gone: who knows what that was trained on."
        if lineage.get("run") is None or lineage.get("scored") == job.scored_directory.name:
            continue
        share = _held_out(job, lineage)
        if share is None:
            return (
                f"{name}: its run is not in this storage, so it may have been trained on these votes. Put "
                "its directory back, or train from a version whose lineage has validation."
            )
        least, of = min((least, of), (share, name), key=lambda found: found[0])
    if least == asked:
        return None
    via = "" if of == version.reference else f", which {version.reference} goes back to,"
    return (
        f"{of}{via} was trained with data.validation {least:g}, less than the {asked:g} here: it may have been trained "
        f"on some of these votes. {f'Evaluate with {least:g}' if least else 'Train from a version that held out some'}."
    )


def _held_out(job: ResolvedJob, lineage: Lineage) -> float | None:
    """By the lineage, or by the run's spec where that is older than this entry."""
    if (share := lineage.get("validation")) is not None:
        return float(share)
    path = job.storage / "runs" / str(lineage["run"]) / "spec.resolved.yaml"
    try:
        return load_spec(path).data.validation if path.is_file() else None
    except SpecError:
        return None
