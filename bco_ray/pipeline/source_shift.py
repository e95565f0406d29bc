"""The offsets of a run whose sources have deltas of their own: fixed when its training begins, kept beside it."""

from __future__ import annotations

from pathlib import Path

from bco_ray.objective import SourceOffsets, source_offsets
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import files
from bco_ray.storage.scored import load_scored, source_weights

FILE = "source_offsets.json"


def fixed_offsets(job: ResolvedJob) -> SourceOffsets | None:
    """Those of the job's run, from its train rows. Rows that are erased later no longer change them."""
    wanted = job.spec.objective.shift.by_source
    if wanted is None:
        return None
    found = offsets_of(job.run_directory)
    if found is None:
        weights = source_weights(job.scored_directory, load_scored(job.scored_directory))
        found = source_offsets(weights, shrinkage_rows=wanted.shrinkage_rows, most=wanted.most)
        files.write_json(job.run_directory / FILE, found.state_dict())
    return found


def offsets_of(run: Path) -> SourceOffsets | None:
    """As the run has fixed them; None: all its rows have one delta."""
    path = run / FILE
    return SourceOffsets.from_state(files.read_json(path)) if path.is_file() else None
