"""How the database is opened, read and written: SQLite by default, PostgreSQL by URL.

SQLite runs in WAL mode, durable at commit (synchronous=FULL). A write transaction takes the write lock at its BEGIN, so
writers are serial, also across processes: a check followed by an insert cannot race, and the order of `votes.seq` is
the order of commits. Checkpoints are serial with them, by a lock file beside the database. On PostgreSQL a writer locks
the rows it checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from bco_ray.errors import StorageError
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath

DATABASE = "bco.db"
BUSY_TIMEOUT_SECONDS = 30
REVISION = "0004"
"""The newest of `migrations/versions`."""


def open_database(storage: Path, url: str | None = None) -> sa.Engine:
    """An engine on `<storage>/bco.db`, or on what `url` (sqlite:/// or postgresql://) names, with all tables there.

    Raises StorageError if it cannot be opened, or was written by a newer version of this program.
    """
    if url is None and isinstance(storage, ObjectPath):
        raise StorageError(f"{storage}: no place for {DATABASE}; name the server's own directory (its --state).")
    url = url or f"sqlite:///{storage / DATABASE}"
    kind = url.partition(":")[0].partition("+")[0]
    if kind == "sqlite":
        engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
    elif kind in {"postgresql", "postgres"}:
        engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"), hide_parameters=True, pool_pre_ping=True
        )
    else:
        raise StorageError(f"{kind}: no such database; use sqlite:///PATH or postgresql://USER@HOST/NAME.")
    _migrate(engine)
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent snapshot; never waits for writers."""
    with translated(engine), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction: committed and on disk when the block ends, rolled back if it raises. On SQLite the only one."""
    alone = the_only_writer(engine.url)
    with alone, translated(engine), engine.execution_options(bco_writes=True).begin() as connection:
        yield connection


def the_only_writer(url: sa.URL) -> AbstractContextManager[None]:
    """Held by whoever writes to a SQLite file, from before its transaction until after the checkpoint that may follow.

    SQLite's own lock ends with the commit; up to SQLite 3.51.2 a commit of another process during a second checkpoint
    can be lost (its WAL-reset bug, https://sqlite.org/wal.html).
    """
    if url.get_backend_name() != "sqlite":
        return nullcontext()
    path = Path(str(url.database)).with_name(f".{DATABASE}.lock")
    busy = f"{DATABASE} is locked: another process has been writing to it for {BUSY_TIMEOUT_SECONDS} s; try again."
    return files.locked(path, busy=busy, seconds=BUSY_TIMEOUT_SECONDS)


def one_at_a_time(connection: sa.Connection, what: str) -> None:
    """Others who ask for the same wait here until this transaction has ended. A writer on SQLite is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"bco: {what}", 0))))


@contextmanager
def translated(engine: sa.Engine) -> Iterator[None]:
    """The database's own errors (locked, full, not a database, no free connection) as StorageError."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        raise StorageError(f"{engine.url.render_as_string()}: {str(getattr(error, 'orig', error)).strip()}") from error


def _migrate(engine: sa.Engine) -> None:
    """Bring the tables up to REVISION, if they are not. One process at a time."""
    with writing(engine) as connection:
        one_at_a_time(connection, "migrations")
        found = _revision(connection)
        if found == REVISION:
            return
        if found is not None and found > REVISION:
            raise StorageError(
                f"{engine.url.render_as_string()}: its tables are of a newer bco-ray (revision {found}, this one knows "
                f"{REVISION}); upgrade."
            )
        _upgrade(connection)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(sa.text("select version_num from alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: sa.Connection) -> None:
    """Imported here: who finds the tables in order needs no Alembic."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, REVISION)


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("bco_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
