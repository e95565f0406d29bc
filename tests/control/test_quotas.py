"""What a key may use up, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bco_ray.control.budget import Spent
from bco_ray.control.files import FileStore, StoredFile
from bco_ray.control.job import Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.quotas import QuotaError, check_gpu_quota
from bco_ray.storage.database import open_database

LINE = b'{"prompt": "hi", "completion": "hello", "label": true}\n'
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return open_database(tmp_path, url)


def spent(engine: sa.Engine, key: str, details: dict[str, Any]) -> None:
    request = {"model": "m", "training_file": "feedback"}
    store = JobStore(engine)
    job, _ = store.create(Order(new_id("ftjob"), "acme", key, request, {"name": "x"}, {}, body_hash(request)))
    store.note(job, details=details)


def at_work(began: float, hours: float, gpus: float, before: Spent = Spent()) -> Spent:
    """Looked at every hour."""
    found = Spent(**before.until(began, gpus, 0))
    for hour in range(1, int(hours) + 1):
        found = Spent(**found.until(began + 3600 * hour, gpus, 0))
    return Spent(**found.paused())


def test_a_month_is_charged_with_what_was_used_in_it() -> None:
    found = at_work(NEW_YEAR - 10 * 3600, 30, 2)
    assert (found.seconds, found.gpu_seconds) == (30 * 3600, 60 * 3600)
    assert (found.month, found.month_gpu_seconds) == ("2027-01", 42 * 3600)  # the hour that ended at midnight too
    later = at_work(NEW_YEAR + 90 * 86400, 1, 1, found)
    assert (later.month, later.month_gpu_seconds, later.gpu_seconds) == ("2027-04", 3600, 61 * 3600)


def test_gpu_hours_of_a_key_and_a_month(engine: sa.Engine) -> None:
    clock = [NEW_YEAR + 20 * 86400.0]

    def check(key: str, allowed: float | None) -> None:
        check_gpu_quota(engine, key, allowed, lambda: clock[0])

    for began in (NEW_YEAR - 40 * 86400, NEW_YEAR + 86400, NEW_YEAR + 2 * 86400):
        spent(engine, "key1", {"spent": vars(at_work(began, 5, 1))})
    spent(engine, "key2", {"spent": vars(at_work(NEW_YEAR, 9, 8))})
    spent(engine, "key1", {"spent": {"seconds": 1.0, "gpu_seconds": 9e9}})  # of before months were kept
    spent(engine, "key1", {})
    check("key1", 10.5)
    check("key1", None)
    check("key3", 0.1)
    with pytest.raises(QuotaError, match="have used 10 GPU-hours in 2027-01, of 10 that it may") as raised:
        check("key1", 10)
    assert raised.value.after_seconds == 11 * 86400 + 1
    clock[0] = NEW_YEAR + 31 * 86400
    check("key1", 10)


def test_the_last_month_ends_with_its_year(engine: sa.Engine) -> None:
    spent(engine, "key1", {"spent": vars(at_work(NEW_YEAR - 86400, 1, 1))})
    with pytest.raises(QuotaError) as raised:
        check_gpu_quota(engine, "key1", 1, lambda: NEW_YEAR - 60)
    assert raised.value.after_seconds == 61


# --- uploads ----------------------------------------------------------------------------------------------------------


def add(store: FileStore, lines: int = 1, project: str = "acme", actor: str = "small") -> StoredFile:
    return store.add(project, "votes.jsonl", "fine-tune", [LINE * lines], actor=actor)


def test_a_project_is_filled_as_far_as_the_key_may(engine: sa.Engine, tmp_path: Path) -> None:
    store = FileStore(engine, tmp_path / "files", {"small": 10 * len(LINE), "large": None}.__getitem__)
    first, second = add(store, 6), add(store, 4)
    with pytest.raises(
        QuotaError, match=f"acme has {10 * len(LINE)} bytes of uploads; with these {len(LINE)} it would"
    ):
        add(store)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {first.id, second.id}
    assert len(store.list("acme")[0]) == 2
    add(store, project="rival")
    third = add(store, actor="large")
    store.delete("acme", third.id)
    store.delete("acme", second.id)
    add(store, 4)


def test_many_at_once_do_not_fill_it_further(engine: sa.Engine, tmp_path: Path) -> None:
    store = FileStore(engine, tmp_path / "files", lambda _: 5 * len(LINE))

    def added(_: int) -> bool:
        try:
            return bool(add(store))
        except QuotaError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(added, range(16))) == 5
