"""What the log of a job turned out to be, as its run left it: its numbers, and the rows that were refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.control.files import is_file_id
from bco_ray.control.job import Job
from bco_ray.errors import ModelError
from bco_ray.storage import files
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.quarantine import Refused, refused_rows
from bco_ray.storage.records import load_records
from bco_ray.storage.registry import Registry
from bco_ray.storage.scored import load_scored

Json = dict[str, Any]
Summarize = Callable[[Mapping[str, Any]], Json]
"""From the state of a log's statistics to what people read."""


class LogNotReadError(NotFoundError):
    """The log of a job has not been read yet, or its run left nothing to say of it."""


@dataclass(frozen=True)
class LogReport:
    """`read = kept + sum(drops)`. `matching` and `mixture` None: the job has not registered anything (yet)."""

    read: int
    kept: int
    drops: Mapping[str, int]
    answers: Mapping[str, int]
    statistics: Mapping[str, Any]
    matching: Mapping[str, Any] | None
    mixture: Mapping[str, Any] | None


@dataclass(frozen=True)
class Directories:
    """The server's own directory, and where jobs write."""

    state: Path
    storage: Path


def report_of(directories: Directories, job: Job, summarize: Summarize) -> LogReport:
    """Raises LogNotReadError, and StorageError if what was read is damaged."""
    records = load_records(_records(directories, job))
    scored = _scored(directories.storage, job)
    found = load_scored(scored) if scored else None
    kept, drops = (records.kept, records.drops) if found is None else (found.kept, found.drops)
    matching, mixture = (None, None) if found is None else (found.matching, found.mixture)
    return LogReport(records.read, kept, drops, records.answers, summarize(records.statistics), matching, mixture)


def refused_of(
    directories: Directories, job: Job, *, reason: str | None, after: tuple[str, int], limit: int
) -> tuple[list[Refused], bool]:
    """Up to `limit` refused rows, and whether there are more. Raises LogNotReadError."""
    found = (_records(directories, job), _scored(directories.storage, job))
    return refused_rows([p / "quarantine" for p in found if p], reason=reason, after=after, limit=limit)


def shown_file(storage: Path, job: Job, file: str) -> str:
    """An upload by its id, and what lies in the server's own storage without where that is."""
    training_file = str(job.request["training_file"])
    if is_file_id(training_file):
        return training_file
    path = files.path_of(file)
    return path.relative_to(storage).as_posix() if path.is_relative_to(storage) else file


def _records(directories: Directories, job: Job) -> Path:
    name: str | None = (JobDirectory(directories.state, job.id).resolved or {}).get("records")
    directory = directories.storage / "records" / name if name else None
    if directory is None or not files.is_committed(directory):
        raise LogNotReadError(f"{job.id}: its log has not been read yet.")
    return directory


def _scored(storage: Path, job: Job) -> Path | None:
    """Of the version that it became, as long as that is registered."""
    reference = (job.outcome or {}).get("model")
    try:
        name: str | None = Registry(storage).resolve(reference).lineage.get("scored") if reference else None
    except ModelError:
        return None
    directory = storage / "scored" / name if name else None
    return directory if directory and files.is_committed(directory) else None
