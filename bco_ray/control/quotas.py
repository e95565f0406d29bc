"""What keys may use up: GPU-hours of a calendar month, and bytes of uploads."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa

from bco_ray.control.budget import SECONDS_PER_HOUR, month_of
from bco_ray.errors import BcoError
from bco_ray.storage.database import one_at_a_time, reading
from bco_ray.storage.job_tables import files, jobs

_DAY_SECONDS = 86400


class QuotaError(BcoError):
    """A key has used up what it may. `after_seconds`: when to ask again, at the soonest that makes sense."""

    def __init__(self, message: str, after_seconds: int = _DAY_SECONDS) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


def check_gpu_quota(
    engine: sa.Engine, key_id: str, allowed: float | None, clock: Callable[[], float] = time.time
) -> None:
    """Raises QuotaError if the jobs that a key asked for have used up its GPU-hours of this month (UTC).

    What a job has used counts for the key that made it, in the month in which it was used, whoever resumes it.
    """
    if allowed is None:
        return
    now = clock()
    month, used = (jobs.c.details[("spent", name)] for name in ("month", "month_gpu_seconds"))
    of_month = sa.and_(jobs.c.created_by == key_id, month.as_string() == month_of(now))
    with reading(engine) as connection:
        seconds = connection.execute(sa.select(sa.func.sum(used.as_float())).where(of_month)).scalar() or 0.0
    hours = seconds / SECONDS_PER_HOUR
    if hours >= allowed:
        raise QuotaError(
            f"The jobs of this key have used {hours:.4g} GPU-hours in {month_of(now)}, of {allowed:g} that it may. "
            "Wait for the next month (UTC), or ask who runs the server for a key that may more.",
            _until_next_month(now),
        )


def used_up(engine: sa.Engine, key_id: str, allowed: float | None) -> str | None:
    """What a waiting job waits for whose key has used up its GPU-hours; None if it has not."""
    try:
        check_gpu_quota(engine, key_id, allowed)
    except QuotaError:
        return "the next month (UTC): its key has used the GPU-hours that it may"
    return None


def check_upload_quota(connection: sa.Connection, project: str, size: int, allowed: int | None) -> None:
    """In the transaction that stores an upload of so many bytes. Raises QuotaError if a project would then have more
    than a key may fill it to.
    """
    if allowed is None:
        return
    one_at_a_time(connection, f"files of {project}")
    present = sa.and_(files.c.project == project, files.c.deleted_at.is_(None))
    held = connection.execute(sa.select(sa.func.sum(files.c.bytes)).where(present)).scalar() or 0
    if held + size > allowed:
        raise QuotaError(
            f"project {project} has {held} bytes of uploads; with these {size} it would have more than the {allowed} "
            "to which this key may fill it. Delete files that are not needed, or ask who runs the server for a key "
            "that may more."
        )


def _until_next_month(now: float) -> int:
    today = datetime.fromtimestamp(now, UTC)
    later = today.replace(year=today.year + today.month // 12, month=today.month % 12 + 1, day=1)
    return int(later.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() - now) + 1
