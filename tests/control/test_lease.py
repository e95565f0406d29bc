"""Of several who share a database one has its turn, until it has been silent for a while."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from bco_ray.control.lease import SECONDS, Lease
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    engine = open_database(tmp_path, url)
    yield engine
    engine.dispose()


def test_who_says_nothing_for_a_while_loses_its_turn(engine: sa.Engine) -> None:
    now = [1000.0]
    old, new = (Lease(engine, "t1", name, lambda: now[0]) for name in ("old", "new"))
    assert old.held()
    assert not new.held()
    now[0] += SECONDS - 1
    assert old.held()
    now[0] += SECONDS - 1
    assert not new.held()
    now[0] += 2
    assert new.held()
    assert not old.held()
    assert Lease(engine, "t1", "new", lambda: now[0]).held()
    assert Lease(engine, "t2", "old", lambda: now[0]).held()


def test_of_many_who_ask_at_once_one_gets_it(engine: sa.Engine) -> None:
    def ask(number: int) -> bool:
        try:
            return Lease(engine, "t3", f"cluster {number}").held()
        except StorageError:  # PostgreSQL: two had found no row
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1
