"""The audit log: the newest first, by project, a page at a time, and never without the deed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bco_ray.control.audit import AuditEntry, AuditLog, record
from bco_ray.storage.database import open_database, writing


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return open_database(tmp_path, url)


def fill(engine: sa.Engine, *projects: str) -> None:
    with writing(engine) as connection:
        for number, project in enumerate(projects):
            record(connection, project=project, actor="k1", action="job.create", target=f"j{number}", number=number)


def targets(listed: tuple[Sequence[AuditEntry], bool]) -> list[str]:
    return [entry.target for entry in listed[0]]


def test_an_entry_comes_back_as_it_was_recorded(engine: sa.Engine) -> None:
    facts: dict[str, Any] = {"was": None, "to": ["a", {"b": 1}]}
    with writing(engine) as connection:
        record(connection, project="bots", actor="cli:ü", action="model.promote", target="bot/3", **facts)
    ((entry,), more) = AuditLog(engine).list()
    assert entry == AuditEntry(1, entry.at, "bots", "cli:ü", "model.promote", "bot/3", facts)
    assert entry.at > 1.7e9
    assert not more


def test_a_page_at_a_time(engine: sa.Engine) -> None:
    fill(engine, *["bots"] * 5)
    log = AuditLog(engine)
    assert targets(first := log.list(limit=2)) == ["j4", "j3"]
    assert targets(rest := log.list(after=first[0][-1].seq, limit=3)) == ["j2", "j1", "j0"]
    assert (first[1], rest[1]) == (True, False)
    assert log.list(after=rest[0][-1].seq) == ([], False)


def test_a_project_sees_its_own(engine: sa.Engine) -> None:
    fill(engine, "bots", "cats", "bots", "cats")
    log = AuditLog(engine)
    assert targets(log.list()) == ["j3", "j2", "j1", "j0"]
    assert targets(log.list("cats")) == ["j3", "j1"]
    assert targets(log.list("cats", after=4)) == ["j1"]
    assert targets(log.list("bot")) == []


def test_one_action_or_one_actor(engine: sa.Engine) -> None:
    fill(engine, "bots", "bots")
    log = AuditLog(engine)
    log.record(project="bots", actor="k2", action="job.create", target="theirs")
    log.record(project="bots", actor="k1", action="model.promote", target="bot")
    assert targets(log.list("bots", action="job.create")) == ["theirs", "j1", "j0"]
    assert targets(log.list("bots", actor="k1")) == ["bot", "j1", "j0"]
    assert targets(log.list("bots", actor="k2", action="model.promote")) == []


def test_what_was_not_done_is_not_recorded(engine: sa.Engine) -> None:
    def fails() -> None:
        with writing(engine) as connection:
            record(connection, project="bots", actor="k1", action="job.create", target="j")
            raise ValueError("the deed failed")

    with pytest.raises(ValueError, match="the deed failed"):
        fails()
    assert AuditLog(engine).list() == ([], False)
