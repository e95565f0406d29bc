"""The tables: made once, brought up to date, the same on both databases."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from bco_ray.errors import StorageError
from bco_ray.storage import job_tables
from bco_ray.storage.database import DATABASE, REVISION, open_database, reading
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog

metadata = job_tables.metadata


def differences(engine: sa.Engine) -> list[object]:
    with reading(engine) as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_revisions_make_the_tables_that_the_code_means(tmp_path: Path) -> None:
    assert differences(open_database(tmp_path)) == []


def test_they_do_on_postgresql_too(postgresql: str, tmp_path: Path) -> None:
    assert differences(open_database(tmp_path, postgresql)) == []
    assert not (tmp_path / DATABASE).exists()


def test_a_database_from_before_there_were_revisions_is_taken_as_it_is(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        for name in ("alembic_version", *(table for table in metadata.tables if table not in {"completions", "votes"})):
            connection.execute(sa.text(f"drop table if exists {name}"))
        connection.execute(sa.text("alter table completions drop column canary_percent"))
    engine.dispose()
    assert differences(open_database(tmp_path)) == []


def test_of_answers_from_before_nobody_knows_who_decided_on_them(tmp_path: Path) -> None:
    log = FeedbackLog.open(tmp_path)
    log.add_completion(Completion("chatcmpl-1", 1.0, "m/1", "fp", [], [], [Choice("hi", [1], "stop")], {}))
    log.close()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("alter table completions drop column canary_percent")
        database.execute("update alembic_version set version_num = '0003'")
    assert FeedbackLog.open(tmp_path).get_completion("chatcmpl-1").canary_percent is None


def test_many_processes_may_find_no_tables_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        logs = list(pool.map(lambda _: FeedbackLog.open(tmp_path), range(8)))
    assert all(log.list_votes() == ([], False) for log in logs)


def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    open_database(tmp_path).dispose()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(StorageError, match=f"revision 9999, this one knows {REVISION}"):
        open_database(tmp_path)


def test_a_password_is_in_no_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as raised:
        open_database(tmp_path, "postgresql://bco:secret@127.0.0.1:1/bco?connect_timeout=2")
    assert "secret" not in str(raised.value)


def test_an_unknown_kind_of_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match="mysql: no such database; use sqlite:///PATH or postgresql://USER@HOST/NAME"
    ):
        open_database(tmp_path, "mysql://host/db")
