"""The tables of `bco.db` and how it is opened. Completions never change; votes are only ever appended.

SQLite in WAL mode by default, durable at commit (synchronous=FULL). A write transaction takes the write lock at its
BEGIN, so writers are serial, also across processes: a check followed by an insert cannot race, and the order of
`votes.seq` is the order of commits. Checkpoints are serial with them, by a lock file beside the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from bco_ray.errors import StorageError
from bco_ray.storage import files

DATABASE = "bco.db"
BUSY_TIMEOUT_SECONDS = 30

metadata = sa.MetaData()

completions = sa.Table(
    "completions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("system_fingerprint", sa.Text, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("tools", sa.JSON(none_as_null=True)),
    sa.Column("prompt_ids", sa.JSON, nullable=False),
    sa.Column("choices", sa.JSON, nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.Column("user", sa.Text),
)
"""One row per answered request, committed before the answer's last byte leaves."""

votes = sa.Table(
    "votes",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("response_id", sa.Text, sa.ForeignKey("completions.id"), nullable=False),
    sa.Column("choice_index", sa.Integer, nullable=False),
    sa.Column("user", sa.Text, nullable=False),  # "" is the anonymous voter: NULLs would never equal each other
    sa.Column("label", sa.Boolean),
    sa.Column("source", sa.Text),
    sa.Column("comment", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("correction", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("idempotency_key", sa.Text, unique=True),
    sa.Column("body_hash", sa.Text, nullable=False),
    sa.Index("votes_by_voter", "response_id", "choice_index", "user", "seq"),
    sqlite_autoincrement=True,
)
"""One row per vote event; the last one of a (response_id, choice_index, user) counts. Label NULL: withdrawn."""


ERASED = "erased:"
"""Begins the `user` of an erased vote (then its seq) and of an erased completion (then its id). The rows stay, empty:
votes refer to completions, and exports to the last seq. Both are exact, so nobody becomes erased by a name they chose.
"""

NOT_ERASED = (
    votes.c.user != sa.literal(ERASED).concat(sa.cast(votes.c.seq, sa.Text)),
    sa.or_(completions.c.user.is_(None), completions.c.user != sa.literal(ERASED).concat(completions.c.id)),
)
"""Conditions on votes joined with their completions: something is left of both."""


def later_votes() -> sa.Select[tuple[int]]:
    """For a query on `votes`: the later events of the same (response, choice, user)."""
    later = votes.alias("later")
    same = (later.c[name] == votes.c[name] for name in ("response_id", "choice_index", "user"))
    return sa.select(later.c.seq).where(*same, later.c.seq > votes.c.seq).correlate(votes)


def open_database(storage: Path, url: str | None = None) -> sa.Engine:
    """An engine on `<storage>/bco.db` with all tables there. `url` names another database; only SQLite works so far.

    Raises StorageError if it cannot be opened.
    """
    url = url or f"sqlite:///{storage / DATABASE}"
    if not url.startswith("sqlite:///"):
        raise StorageError(f"{url.split(':')[0]}: not supported yet; the feedback log lives in SQLite ({DATABASE}).")
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with the_only_writer(url), translated(url):  # two at once would both create the tables
        metadata.create_all(engine)
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent snapshot; never waits for writers."""
    with translated(str(engine.url)), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """The one writer; committed and on disk when the block ends, rolled back if it raises."""
    alone = the_only_writer(str(engine.url))
    with alone, translated(str(engine.url)), engine.execution_options(bco_writes=True).begin() as connection:
        yield connection


def the_only_writer(url: str) -> AbstractContextManager[None]:
    """Held by whoever writes to the database, from before its transaction until after the checkpoint that may follow.

    SQLite's own lock ends with the commit; up to SQLite 3.51.2 a commit of another process during a second checkpoint
    can be lost (its WAL-reset bug, https://sqlite.org/wal.html).
    """
    path = Path(str(sa.make_url(url).database)).with_name(f".{DATABASE}.lock")
    busy = f"{DATABASE} is locked: another process has been writing to it for {BUSY_TIMEOUT_SECONDS} s; try again."
    return files.locked(path, busy=busy, seconds=BUSY_TIMEOUT_SECONDS)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """The database's own errors (locked, full, not a database) as StorageError."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StorageError(f"{url}: {error.orig}") from error


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("bco_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
