"""Jobs and their events as they are stored: every move is a compare-and-set and leaves an event, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from bco_ray.control.audit import Deed, record
from bco_ray.control.files import hold
from bco_ray.control.job import (
    IllegalMoveError,
    Job,
    JobEvent,
    Json,
    News,
    Order,
    TooManyJobsError,
    WaitingRoom,
    new_id,
)
from bco_ray.control.states import ENDED, MOVES, Status, sources
from bco_ray.errors import ConflictError, StorageError
from bco_ray.storage.database import one_at_a_time, reading, writing
from bco_ray.storage.feedback_rows import NotFoundError, is_storable, storable
from bco_ray.storage.job_tables import job_events, jobs

_AUDITED = ("model", "training_file", "suffix")
"""Of a request for a job."""

_ARCHIVED_AT_ONCE = 100

Told = Callable[[sa.Connection, "Job"], None]
"""Called inside the transaction in which a job ended."""

Changed = Callable[["Job | None", "Job"], None]
"""Called after each transaction with the job as it was (None: it is new) and as it is."""

_CHANGING = attrgetter("status", "attempt", "holds_cluster", "seen_at", "again_at", "details")
"""What tells whether a job is as it was seen."""


class JobStore:
    """The jobs of one database. `ended` is told, in its transaction, of every job that reached its end; `changed` of
    every change that this process made.
    """

    def __init__(self, engine: sa.Engine, ended: Told = lambda *_: None, changed: Changed = lambda *_: None) -> None:
        self._engine = engine
        self._ended = ended
        self._changed = changed

    def create(
        self, order: Order, room: WaitingRoom = WaitingRoom(), *, file_id: str | None = None
    ) -> tuple[Job, bool]:
        """The new job, or the one that this idempotency key made before; and whether it is new.

        Raises ConflictError if the key was used for another request, TooManyJobsError if there is no more room,
        NotFoundError if the upload `file_id` that it is made from is gone.
        """
        for _ in range(2):
            try:
                with writing(self._engine) as connection:
                    if before := _made_before(connection, order.project, order.idempotency_key, order.body_hash):
                        return before, False
                    _check_room(connection, order, room)
                    if file_id is not None:
                        hold(connection, order.project, file_id)
                    job = _insert(connection, order)
                self._changed(None, job)
                return job, True
            except StorageError as error:  # PostgreSQL: somebody with the same key was faster
                if not isinstance(error.__cause__, sa.exc.IntegrityError):
                    raise
        raise StorageError("the job could not be stored; try again.")

    def made_before(self, project: str, key: str | None, digest: str) -> Job | None:
        """What this idempotency key made. Raises ConflictError if that was for another request."""
        with reading(self._engine) as connection:
            return _made_before(connection, project, key, digest)

    def get(self, job_id: str, project: str | None = None) -> Job:
        """Of any project if it is None. Raises NotFoundError, for another project's job too."""
        with reading(self._engine) as connection:
            return _get(connection, job_id, project)

    def page(
        self,
        project: str | None,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[list[Job], bool]:
        """The newest first, those older than `after`; and whether there are more. Raises NotFoundError for `after`."""
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit + 1)
        if project is not None:
            query = query.where(jobs.c.project == project)
        for name, value in (metadata or {}).items():
            query = query.where(jobs.c.metadata[name].as_string() == value)
        with reading(self._engine) as connection:
            if after is not None:
                query = query.where(jobs.c.seq < _get(connection, after, project).seq)
            found = [_job(row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def unsettled(self) -> list[Job]:
        """Those somebody has to look after: not ended, or perhaps still on the cluster. The most urgent first."""
        open_ones = sa.or_(jobs.c.status.in_(sorted(MOVES.keys() - ENDED)), jobs.c.holds_cluster)
        with reading(self._engine) as connection:
            query = sa.select(jobs).where(open_ones).order_by(jobs.c.priority.desc(), jobs.c.seq)
            return [_job(row) for row in connection.execute(query).mappings()]

    def unarchived(self, place: str) -> list[Job]:
        """Ended, off the cluster, and not in the archive `place` as they ended: the oldest, a hundred at most."""
        to, finished_at = (jobs.c.details[("archived", name)] for name in ("to", "finished_at"))
        there = sa.and_(to.as_string() == place, finished_at.as_float() == jobs.c.finished_at)
        over = sa.and_(jobs.c.status.in_(sorted(ENDED)), ~jobs.c.holds_cluster)
        query = sa.select(jobs).where(over, ~sa.func.coalesce(there, sa.false()))
        query = query.order_by(jobs.c.seq).limit(_ARCHIVED_AT_ONCE)
        with reading(self._engine) as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def mark_archived(self, job: Job, place: str) -> None:
        """As it ended, it lies in `place`. Raises ConflictError if it has been taken up again."""
        self.note(job, details={**job.details, "archived": {"to": place, "finished_at": job.finished_at}})

    def move(
        self, job_id: str, status: Status, *news: News, project: str | None = None, seen: Job | None = None,
        was: Status | None = None, deed: Deed | None = None, **changes: Any,
    ) -> Job:  # fmt: skip
        """The job in its new state, which `news` tell of. With `seen` only if it is still as there, with `was` only
        from that state. `deed`: for the audit log, if somebody wanted it so.

        Raises NotFoundError, IllegalMoveError naming the state it is in, ConflictError if it is not as `seen`.
        """
        with writing(self._engine) as connection:
            if seen is not None:
                _require_same(connection, seen)
            before = _get(connection, job_id, project, lock=True)
            if before.status not in sources(status) or was not in (None, before.status):
                raise IllegalMoveError(f"{job_id} is {before.status} and cannot become {status}.")
            job = _change(connection, job_id, status=status, **_times(before, status), **changes)
            _add_events(connection, job_id, news)
            if deed is not None:
                _audit(connection, job, deed, was=before.status)
            if status in ENDED:
                self._ended(connection, job)
        self._changed(before, job)
        return job

    def note(self, seen: Job, news: Collection[News] = (), **changes: Any) -> Job:
        """New facts and events of a job whose status stays. Raises ConflictError if it is not as `seen` any more.

        Events come with a change: of two who saw the same and would tell the same, the second is late.
        """
        with writing(self._engine) as connection:
            _require_same(connection, seen)
            _add_events(connection, seen.id, news)
            job = _change(connection, seen.id, **changes) if changes else seen
        self._changed(seen, job)
        return job

    def events(
        self,
        job_id: str,
        project: str | None = None,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
    ) -> tuple[list[JobEvent], bool]:
        """The newest first, between `before` and `after`; and whether there are more. Raises NotFoundError."""
        query = sa.select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.seq.desc())
        with reading(self._engine) as connection:
            _get(connection, job_id, project)
            if after is not None:
                query = query.where(job_events.c.seq < _event_seq(connection, job_id, after))
            if before is not None:
                query = query.where(job_events.c.seq > _event_seq(connection, job_id, before))
            rows = [JobEvent(**row) for row in connection.execute(query.limit(limit + 1)).mappings()]
        return rows[:limit], len(rows) > limit

    def events_since(self, job_id: str, seq: int, limit: int = 1000) -> list[JobEvent]:
        """In order, those after `seq`."""
        newer = sa.and_(job_events.c.job_id == job_id, job_events.c.seq > seq)
        with reading(self._engine) as connection:
            query = sa.select(job_events).where(newer).order_by(job_events.c.seq).limit(limit)
            return [JobEvent(**row) for row in connection.execute(query).mappings()]


def _made_before(connection: sa.Connection, project: str, key: str | None, digest: str) -> Job | None:
    if key is None:
        return None
    same = sa.and_(jobs.c.project == project, jobs.c.idempotency_key == key)
    row = connection.execute(sa.select(jobs).where(same)).mappings().first()
    if row is not None and row["body_hash"] != digest:
        raise ConflictError("This Idempotency-Key was used for another request; use a new one for each job.")
    return None if row is None else _job(row)


def _check_room(connection: sa.Connection, order: Order, room: WaitingRoom) -> None:
    whose = {
        f"project {order.project}": (jobs.c.project == order.project, room.of_project),
        "this key": (jobs.c.created_by == order.created_by, room.of_key),
    }
    one_at_a_time(connection, f"jobs of {order.project}")
    for who, (theirs, limit) in whose.items():
        if limit is None:
            continue
        waiting = sa.and_(theirs, jobs.c.status.in_(["validating_files", "queued"]))
        count = connection.execute(sa.select(sa.func.count()).select_from(jobs).where(waiting)).scalar_one()
        if count >= limit:
            raise TooManyJobsError(f"{who} has {count} jobs waiting, of {limit} it may have; wait, or cancel one.")


def _insert(connection: sa.Connection, order: Order) -> Job:
    row = {
        "created_at": time.time(), "status": "validating_files", "attempt": 0,
        "holds_cluster": False, **vars(order),
    }  # fmt: skip
    connection.execute(sa.insert(jobs).values(**row))
    _add_events(connection, row["id"], [News("Created fine-tuning job.")])
    job = _get(connection, row["id"], None)
    asked = {name: job.request[name] for name in _AUDITED if name in job.request}
    _audit(connection, job, Deed(job.created_by, "job.create"), **asked)
    return job


def _audit(connection: sa.Connection, job: Job, deed: Deed, **facts: Any) -> None:
    record(connection, project=job.project, actor=deed.actor, action=deed.action, target=job.id, **facts)


def _get(connection: sa.Connection, job_id: str, project: str | None, *, lock: bool = False) -> Job:
    query = sa.select(jobs).where(jobs.c.id == job_id)
    query = query.with_for_update() if lock else query
    row = connection.execute(query).mappings().first() if is_storable(job_id) else None
    if row is None or (project is not None and row["project"] != project):
        raise NotFoundError(f"{job_id}: no such job.")
    return _job(row)


def _require_same(connection: sa.Connection, seen: Job) -> None:
    now = _get(connection, seen.id, None, lock=True)
    if _CHANGING(now) != _CHANGING(seen):
        raise ConflictError(f"{seen.id} has changed: it is {now.status} (attempt {now.attempt}) by now.")


def _change(connection: sa.Connection, job_id: str, **changes: Any) -> Job:
    """Some of it is what a driver wrote, about files that may hold anything."""
    values = {name: storable(value) for name, value in changes.items()}
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**values))
    return _get(connection, job_id, None)


def _times(before: Job, status: Status) -> Json:
    now = time.time()
    if status in ENDED:
        return {"finished_at": now}
    return {"started_at": now} if status == "running" and before.started_at is None else {}


def _add_events(connection: sa.Connection, job_id: str, news: Collection[News]) -> None:
    for one in news:
        message, data = storable(one.message), storable(dict(one.data or {}))
        row = {"message": message, "level": one.level, "type": one.type, "data": data}
        values = {"id": new_id("ftevent"), "job_id": job_id, "created_at": time.time(), **row}
        connection.execute(sa.insert(job_events).values(values))


def _event_seq(connection: sa.Connection, job_id: str, event_id: str) -> int:
    same = sa.and_(job_events.c.id == event_id, job_events.c.job_id == job_id)
    seq = connection.execute(sa.select(job_events.c.seq).where(same)).scalar() if is_storable(event_id) else None
    if seq is None:
        raise NotFoundError(f"{event_id}: no such event of {job_id}.")
    return int(seq)


def _job(row: sa.RowMapping) -> Job:
    return Job(**row)
