"""What is cleared away, what stays, and that one chore is not in another's way; on both databases."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bco_ray.control.files import FileStore
from bco_ray.control.upkeep import DELIVERY_SECONDS, ORPHAN_SECONDS, Upkeep
from bco_ray.control.webhooks import Outcome, WebhookStore
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database, writing

LINE = b'{"prompt": "hi", "completion": "hello", "label": true}\n'
EVENT: Any = "fine_tuning.job.failed"


class Clock:
    """Seconds that pass when told to."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return open_database(tmp_path, url)


def left_behind(directory: Path, number: int, seconds: float) -> Path:
    """What an upload leaves that broke off so long ago."""
    path = directory / f".file-{number:024d}.abc.tmp"
    path.mkdir(parents=True)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_what_broke_off_goes_and_the_rest_stays(engine: sa.Engine, tmp_path: Path) -> None:
    files = FileStore(engine, tmp_path / "files")
    kept = files.add("acme", "votes.jsonl", "fine-tune", [LINE])
    os.utime(tmp_path / "files" / kept.id, (0, 0))
    young = left_behind(tmp_path / "files", 1, ORPHAN_SECONDS - 600)
    old = left_behind(tmp_path / "files", 2, ORPHAN_SECONDS + 600)
    log = tmp_path / "jobs" / "ftjob-1" / "driver.log"
    log.parent.mkdir(parents=True)
    log.write_text("said\n")
    os.utime(log, (0, 0))
    Upkeep(files, WebhookStore(engine)).run_once()
    assert (old.exists(), young.exists(), log.exists()) == (False, True, True)
    assert files.open("acme", kept.id).read_bytes() == LINE


def test_deliveries_that_are_over_go_after_thirty_days(engine: sa.Engine, tmp_path: Path) -> None:
    clock = Clock()
    webhooks = WebhookStore(engine, clock=clock)
    hooks = {name: webhooks.create("acme", "https://a/", [EVENT])[0].id for name in ("delivered", "given up", "waits")}
    with writing(engine) as connection:
        webhooks.enqueue(connection, "acme", EVENT, {"id": "ftjob-1"})
    outcomes = {
        hooks["delivered"]: Outcome(200, None, delivered_at=clock.now + 60, next_at=None),
        hooks["given up"]: Outcome(410, "gone", delivered_at=None, next_at=None),
        hooks["waits"]: Outcome(500, "no", delivered_at=None, next_at=clock.now + 9e9),
    }
    for taken in webhooks.take(clock.now, until=clock.now + 60, most=8, busy=[], tries=9):
        webhooks.record(taken, outcomes[taken.webhook_id])
    upkeep = Upkeep(FileStore(engine, tmp_path / "files"), webhooks, clock=clock)

    def there() -> set[str]:
        upkeep.run_once()
        return {name for name, hook in hooks.items() if webhooks.deliveries("acme", hook)[0]}

    clock.now += DELIVERY_SECONDS
    assert there() == {"delivered", "given up", "waits"}
    clock.now += 30
    assert there() == {"delivered", "waits"}
    clock.now += 60
    assert there() == {"waits"}


@pytest.mark.parametrize("broken", [StorageError("the database is away"), PermissionError("no")])
def test_a_chore_that_fails_is_told_and_the_others_are_done(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: Any
) -> None:
    def sweep(_seconds: float) -> list[str]:
        raise broken

    files, asked = FileStore(engine, tmp_path / "files"), list[float]()
    webhooks = WebhookStore(engine)
    monkeypatch.setattr(files, "sweep", sweep)
    monkeypatch.setattr(webhooks, "forget", lambda before: asked.append(before) or 0)
    Upkeep(files, webhooks, clock=lambda: DELIVERY_SECONDS + 5).run_once()
    assert asked == [5]
    assert f"upkeep: {broken}" in caplog.text
