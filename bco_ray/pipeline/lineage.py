"""What a model version descends from: everything that went into it, by content address, and what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bco_ray
from bco_ray.pipeline.contenders import final_delta
from bco_ray.pipeline.own_log import manifest_of
from bco_ray.pipeline.source_shift import offsets_of
from bco_ray.storage import files
from bco_ray.storage.export import load_manifest
from bco_ray.storage.records import load_records

if TYPE_CHECKING:
    from bco_ray.pipeline.resolved import ResolvedJob
    from bco_ray.storage.scored import ScoredManifest

CLASSES = ("train_chosen", "train_rejected", "validation_chosen", "validation_rejected")


def lineage_of(
    job: ResolvedJob, scored: ScoredManifest, evaluation: dict[str, Any], project: str | None = None
) -> dict[str, Any]:
    """`lineage.json` of the version that a finished run becomes. `project`: whose job it was, if it was one of the job
    service. Raises StorageError if something it names is gone.
    """
    records = load_records(job.log.directory)
    return {
        "run": job.run_directory.name,
        "project": project,
        "parent": job.spec.model.base,
        "parent_fingerprint": job.model_fingerprint,
        "reference": job.spec.model.reference or job.spec.model.base,
        "reference_fingerprint": job.reference_fingerprint,
        "spec": files.digest(job.spec.model_dump(mode="json")),
        "feedback": list(job.spec.data.feedback),
        "watermarks": _watermarks(job),
        "sources": [{"path": s.path, "bytes": s.bytes, "format": s.format} for s in job.log.sources],
        "records": {"directory": job.log.directory.name, **records.model_dump(include=_COUNTS)},
        "scored": job.scored_directory.name,
        "validation": job.spec.data.validation,
        "shards": _shard_digests(job, scored),
        "votes": {"read": scored.read, "kept": scored.kept, "drops": scored.drops},
        "mixture": scored.mixture,
        "classes": {name: scored.count(name) for name in CLASSES},
        "matching": {k: v for k, v in scored.matching.items() if v is None or isinstance(v, str | int | float)},
        "lengths": {k: v for k, v in scored.lengths.items() if isinstance(v, str | int | float)},
        "delta_by_source": _deltas(job),
        "evaluation": evaluation,
        "gate": job.spec.gate.model_dump(mode="json", exclude_none=True) if job.spec.gate else None,
        "bco_ray": bco_ray.__version__,
    }


def _deltas(job: ResolvedJob) -> dict[str, float] | None:
    """Final ones, where sources have their own."""
    offsets = offsets_of(job.run_directory)
    return None if offsets is None else offsets.deltas(final_delta(job.run_directory, job.spec))


_COUNTS = {"read", "kept", "drops", "answers"}


def _watermarks(job: ResolvedJob) -> dict[str, int]:
    """The last event of the server's own log in each manifest that the spec pins, by its entry (`feedback:3`)."""
    pinned = {entry: manifest_of(entry) for entry in job.spec.data.feedback}
    directory = job.storage / "feedback"
    return {entry: load_manifest(directory, number).watermark for entry, number in pinned.items() if number}


def _shard_digests(job: ResolvedJob, scored: ScoredManifest) -> dict[str, str]:
    """As they were committed."""
    listed = files.read_json(job.scored_directory / files.MANIFEST)["files"]
    return {shard.file: listed[shard.file]["sha256"] for shard in scored.shards}
