"""Uploads: a row each, and the bytes beside the database, `<storage>/files/<id>/content<extension>`.

Bytes come first and go last. An upload is checked and whole on disk before its row says that it exists; a deleted one
is gone from the table before its bytes are. What a crash leaves between the two is bytes without a row, never a row
without bytes, and `sweep` removes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from bco_ray.control.audit import record
from bco_ray.control.checking import check_upload
from bco_ray.control.quotas import QuotaError, check_upload_quota
from bco_ray.control.states import ENDED
from bco_ray.errors import BcoError, DataError, StorageError
from bco_ray.storage import files as disk
from bco_ray.storage.database import reading, writing
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_tables import files, jobs
from bco_ray.storage.log_names import KNOWN, extension_of

Order = Literal["asc", "desc"]

_ID = re.compile(r"file-[0-9a-f]{24}")
_OURS = re.compile(r"file-[0-9a-f]{24}|\.file-[0-9a-f]{24}\.[0-9a-f]+\.tmp")
"""What sweep may touch: uploads, and those being written."""


class InvalidFileError(DataError):
    """An upload that is no log of votes."""


class FileInUseError(BcoError):
    """A job that has not ended is made from it."""


@dataclass(frozen=True)
class StoredFile:
    """An upload. `filename` is its owner's word for it and part of no path. Times are unix seconds."""

    id: str
    project: str
    created_at: float
    filename: str
    purpose: str
    bytes: int
    sha256: str
    status: str = "processed"
    status_details: str | None = None

    @property
    def stored_name(self) -> str:
        """Readers tell kind and compression by it."""
        return f"content{extension_of(self.filename)}"


Found = tuple[list[StoredFile], bool]
"""Some files, and whether there are more."""


class FileStore:
    """The uploads of one database; `directory` holds their bytes. A project sees its own: others' ids are unknown.

    `allowed_bytes`: to how many an actor may fill its project; None: to any number.
    """

    def __init__(
        self, engine: sa.Engine, directory: Path, allowed_bytes: Callable[[str], int | None] = lambda _: None
    ) -> None:
        self._engine = engine
        self._directory = directory
        self._allowed_bytes = allowed_bytes

    def add(
        self, project: str, filename: str, purpose: str, chunks: Iterable[bytes], *, actor: str = "server"
    ) -> StoredFile:
        """Check and store an upload; durable when this returns. `actor`: for the audit log, as in `delete`.

        Raises InvalidFileError for what cannot be a log of votes, QuotaError for what is too much, with nothing stored;
        and StorageError.
        """
        if not extension_of(filename):
            raise InvalidFileError(f"{filename}: unknown file type; known are {KNOWN}.")
        file_id = f"file-{secrets.token_hex(12)}"
        with _translated(), disk.new_directory(self._directory / file_id) as scratch:
            path = scratch / f"content{extension_of(filename)}"
            size, digest = _write(path, chunks)
            if problem := check_upload(path, filename):
                raise InvalidFileError(problem)
        try:
            return self._insert(StoredFile(file_id, project, time.time(), filename, purpose, size, digest), actor)
        except QuotaError:
            _remove(self._directory / file_id)
            raise

    def get(self, project: str, file_id: str) -> StoredFile:
        """Raises NotFoundError."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(files).where(*_present(project, file_id))).mappings().first()
        if row is None:
            raise _unknown(file_id)
        return _stored(row)

    def open(self, project: str, file_id: str) -> Path:
        """Where its bytes lie. Raises NotFoundError, and StorageError if they are gone."""
        stored = self.get(project, file_id)
        path = self._directory / stored.id / stored.stored_name
        if not path.is_file():
            raise StorageError(f"{path}: missing, though {file_id} was not deleted. Restore it, or upload it again.")
        return path

    def delete(self, project: str, file_id: str, *, actor: str = "server") -> None:
        """The bytes go, the row stays: jobs name it. Raises NotFoundError, and FileInUseError naming the job."""
        gone = sa.update(files).where(*_present(project, file_id)).values(deleted_at=time.time())
        with writing(self._engine) as connection:
            _lock(connection, project, file_id)
            _require_unused(connection, project, file_id)
            connection.execute(gone)
            record(connection, project=project, actor=actor, action="file.delete", target=file_id)
        _remove(self._directory / file_id)

    def list(
        self,
        project: str,
        *,
        purpose: str | None = None,
        order: Order = "desc",
        after: str | None = None,
        limit: int = 100,
    ) -> Found:
        """Up to `limit` files, the newest first (`asc`: last), those after the one with id `after`.

        That one may be deleted by now. Raises NotFoundError if there never was one.
        """
        newest_first = order == "desc"
        query = sa.select(files).where(*_present(project)).limit(limit + 1)
        query = query.order_by(files.c.seq.desc() if newest_first else files.c.seq)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with reading(self._engine) as connection:
            if after is not None:
                seq = _seq(connection, project, after)
                query = query.where(files.c.seq < seq if newest_first else files.c.seq > seq)
            found = [_stored(row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def sweep(self, older_than_seconds: float) -> Sequence[str]:
        """Remove bytes without a row that nobody has written to for so long, and say which.

        It must be longer than an upload takes from its last byte to its row.
        """
        stale = [path for path in self._ours() if _newest(path) < time.time() - older_than_seconds]
        with reading(self._engine) as connection:
            known = set(connection.scalars(sa.select(files.c.id).where(files.c.deleted_at.is_(None))))
        orphans = [path for path in stale if path.name not in known]
        for path in orphans:
            _remove(path)
        return [path.name for path in orphans]

    def _ours(self) -> Iterator[Path]:
        if self._directory.is_dir():
            yield from (path for path in sorted(self._directory.iterdir()) if _OURS.fullmatch(path.name))

    def _insert(self, stored: StoredFile, actor: str) -> StoredFile:
        """If this fails the bytes stay, for sweep: the row may be there all the same (a connection lost at commit)."""
        allowed = self._allowed_bytes(actor)
        with writing(self._engine) as connection:
            check_upload_quota(connection, stored.project, stored.bytes, allowed)
            connection.execute(sa.insert(files).values(**asdict(stored)))
            facts = {"filename": stored.filename, "bytes": stored.bytes, "sha256": stored.sha256}
            record(connection, project=stored.project, actor=actor, action="file.upload", target=stored.id, **facts)
        return stored


def is_file_id(text: str) -> bool:
    """Whether it looks like an upload's id."""
    return _ID.fullmatch(text) is not None


def hold(connection: sa.Connection, project: str, file_id: str) -> None:
    """In the transaction that makes a job of it: nobody deletes it before that is over. Raises NotFoundError."""
    _lock(connection, project, file_id, shared=True)


def _lock(connection: sa.Connection, project: str, file_id: str, *, shared: bool = False) -> None:
    """The row, until the transaction ends; whoever waited for it sees what came of the other one. NotFoundError."""
    row = sa.select(files.c.id).where(*_present(project, file_id)).with_for_update(read=shared)
    if connection.execute(row).first() is None:
        raise _unknown(file_id)


def _require_unused(connection: sa.Connection, project: str, file_id: str) -> None:
    made_of_it = jobs.c.project == project, jobs.c.request["training_file"].as_string() == file_id
    query = sa.select(jobs.c.id, jobs.c.status).where(*made_of_it, jobs.c.status.not_in(sorted(ENDED)))
    if (job := connection.execute(query.limit(1)).first()) is not None:
        raise FileInUseError(f"{file_id}: {job.id} ({job.status}) is made from it; wait for its end, or cancel it.")


def _write(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Size and digest of what was written and synced."""
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


@contextmanager
def _translated() -> Iterator[None]:
    """A full or failing disk as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"The upload cannot be stored ({error}). Make room, or check the disk.") from error


def _present(project: str, file_id: str | None = None) -> list[sa.ColumnElement[bool]]:
    """What rows must be like: the project's, not deleted, and with this id if there is one."""
    conditions = [files.c.project == project, files.c.deleted_at.is_(None)]
    return conditions if file_id is None else [*conditions, files.c.id == _checked(file_id)]


def _checked(file_id: str) -> str:
    """Anything else is no id; some of it (U+0000) a database could not even look for. Raises NotFoundError."""
    if not _ID.fullmatch(file_id):
        raise _unknown(file_id)
    return file_id


def _unknown(file_id: str) -> NotFoundError:
    return NotFoundError(f"{file_id[:64]}: no such file.")


def _seq(connection: sa.Connection, project: str, file_id: str) -> int:
    mine = sa.select(files.c.seq).where(files.c.project == project, files.c.id == _checked(file_id))
    seq = connection.execute(mine).scalar()
    if seq is None:
        raise _unknown(file_id)
    return int(seq)


def _stored(row: sa.RowMapping) -> StoredFile:
    return StoredFile(**{field.name: row[field.name] for field in fields(StoredFile)})


def _remove(directory: Path) -> None:
    """What cannot be removed now is left to the next sweep."""
    with suppress(OSError):
        disk.remove_tree(directory)


def _newest(directory: Path) -> float:
    """When something in it was last written; one that is being removed counts as new."""
    try:
        return max(path.stat().st_mtime for path in (directory, *directory.rglob("*")))
    except FileNotFoundError:
        return time.time()
