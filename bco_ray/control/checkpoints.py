"""The checkpoints of a job's run, as the run left them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bco_ray.errors import StorageError
from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore, DamagedError
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.stores import open_store


@dataclass(frozen=True)
class Checkpoint:
    """One that counts. `metrics` are means since the one before."""

    id: str
    step: int
    created_at: float
    metrics: dict[str, float]


def checkpoints_of(storage: Path, job_id: str) -> list[Checkpoint]:
    """The newest first; none before the training has begun. Raises StorageError if they cannot be read now."""
    resolved = JobDirectory(storage, job_id).resolved
    if resolved is None:
        return []
    try:
        store = CheckpointStore(open_store(resolved.get("checkpoints") or f"{resolved['run']}/checkpoints"))
        return [found for step in sorted(store.steps(), reverse=True) if (found := _checkpoint(store, job_id, step))]
    except OSError as error:
        raise StorageError(f"{job_id}: its checkpoints cannot be read now: {error}") from error


def _checkpoint(store: CheckpointStore, job_id: str, step: int) -> Checkpoint | None:
    try:
        manifest = store.manifest(step)
    except (DamagedError, OSError):  # or it has just been replaced by newer ones
        return None
    name = files.digest({"job": job_id, "step": step})
    return Checkpoint(f"ftckpt-{name}", step, manifest.created_at, manifest.metrics)
