"""Jobs as they are stored, on both databases."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from bco_ray.control.job import IllegalMoveError, Job, News, Order, TooManyJobsError, WaitingRoom, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.states import ENDED, MOVES, Status, sources
from bco_ray.errors import ConflictError
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_rows import NotFoundError


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> JobStore:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return JobStore(open_database(tmp_path, url))


def order(n: int = 0, **changes: Any) -> Order:
    made = Order(new_id("ftjob"), "acme", "key1", {"n": n}, {"name": "x"}, {}, body_hash({"n": n}))
    return replace(made, **changes)


def job(store: JobStore, *states: Status, **changes: Any) -> Job:
    made, _ = store.create(order(**changes))
    for status in states:
        made = store.move(made.id, status, News(f"to {status}"))
    return made


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(MOVES) == set(get_args(Status))
    assert all(sources(status) for status in MOVES if status != "validating_files")
    assert {"succeeded", "failed", "cancelled"} == ENDED


@pytest.mark.parametrize("before", MOVES)
def test_only_the_moves_of_the_table_are_made(store: JobStore, before: Status) -> None:
    ways: dict[Status, tuple[Status, ...]] = {
        "validating_files": (), "queued": ("queued",), "running": ("queued", "running"), "paused": ("queued", "paused"),
        "succeeded": ("queued", "running", "succeeded"), "failed": ("failed",), "cancelled": ("cancelled",),
    }  # fmt: skip
    for after in MOVES:
        made = job(store, *ways[before])
        if after in MOVES[before]:
            assert store.move(made.id, after, News("moved")).status == after
            assert store.events(made.id)[0][0].message == "moved"
        else:
            with pytest.raises(IllegalMoveError, match=f"{made.id} is {before} and cannot become {after}"):
                store.move(made.id, after, News("moved"))
            assert store.get(made.id) == made
            assert len(store.events(made.id)[0]) == 1 + len(ways[before])


def test_an_idempotency_key_makes_one_job(store: JobStore) -> None:
    first, new = store.create(order(1, idempotency_key="k"))
    again, new_again = store.create(order(1, idempotency_key="k"))
    assert (first, new, new_again) == (again, True, False)
    with pytest.raises(ConflictError, match="used for another request"):
        store.create(order(2, idempotency_key="k"))
    assert store.create(order(2, idempotency_key="k", project="other"))[1]
    assert store.create(order(1))[0].id != store.create(order(1))[0].id


def test_two_hundred_creates_with_twenty_keys_make_twenty_jobs(store: JobStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda n: store.create(order(n % 20, idempotency_key=f"k{n % 20}")), range(200)))
    assert Counter(new for _, new in made) == {True: 20, False: 180}
    assert len({one.id for one, _ in made}) == 20
    assert len(store.page("acme", limit=100)[0]) == 20
    assert all(len(store.events(one.id)[0]) == 1 for one, _ in made)


def test_pages_are_newest_first_and_of_one_project(store: JobStore) -> None:
    ids = [job(store, n=n).id for n in range(5)]
    job(store, project="other")
    first, more = store.page("acme", limit=3)
    assert ([one.id for one in first], more) == (ids[:1:-1], True)
    rest, more = store.page("acme", after=first[-1].id, limit=3)
    assert ([one.id for one in rest], more) == (ids[1::-1], False)
    assert len(store.page(None, limit=10)[0]) == 6
    with pytest.raises(NotFoundError):
        store.page("other", after=ids[0])


def test_metadata_selects(store: JobStore) -> None:
    wanted = job(store, metadata={"team": "a", "run": "1"})
    job(store, metadata={"team": "b"})
    assert store.page("acme", metadata={"team": "a"})[0] == [wanted]
    assert store.page("acme", metadata={"team": "a", "run": "2"})[0] == []


def test_another_projects_job_is_unknown(store: JobStore) -> None:
    made = job(store)
    for look in (store.get, store.events):
        with pytest.raises(NotFoundError, match=f"{made.id}: no such job"):
            look(made.id, "other")
    with pytest.raises(NotFoundError):
        store.move(made.id, "cancelled", News("no"), project="other")
    assert store.get(made.id, "acme") == made


def test_of_two_who_saw_the_same_one_moves(store: JobStore) -> None:
    seen = job(store, "queued")
    outcomes = Counter[str]()

    def submit(n: int) -> None:
        try:
            store.note(seen, [News(f"submitted by {n}")], attempt=1, submission=f"{seen.id}-1", holds_cluster=True)
            outcomes["done"] += 1
        except ConflictError:
            outcomes["late"] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))
    assert outcomes == {"done": 1, "late": 7}
    assert len(store.events(seen.id)[0]) == 3


def test_who_ends_is_told_of_in_the_same_transaction(tmp_path: Path) -> None:
    told: list[str] = []

    def fail(_: object, ended: Job) -> None:
        told.append(ended.id)
        raise RuntimeError("no")

    store = JobStore(open_database(tmp_path), fail)
    made = job(store, "queued")
    with pytest.raises(RuntimeError):
        store.move(made.id, "cancelled", News("cancelled"))
    assert told == [made.id]
    assert store.get(made.id).status == "queued"


def test_a_project_has_a_limit_of_waiting_jobs(store: JobStore) -> None:
    store.create(order(1), WaitingRoom(2))
    store.create(order(2, idempotency_key="k"), WaitingRoom(2))
    with pytest.raises(TooManyJobsError, match="acme has 2 jobs waiting, of 2"):
        store.create(order(3), WaitingRoom(2))
    assert store.create(order(2, idempotency_key="k"), WaitingRoom(2))[1] is False
    assert store.create(order(3, project="other"), WaitingRoom(2))[1]


def test_the_limit_holds_for_many_at_once(store: JobStore) -> None:
    def create(number: int) -> bool:
        try:
            return store.create(order(number), WaitingRoom(3))[1]
        except TooManyJobsError:
            return False

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(create, range(24))) == 3


def test_what_needs_looking_after(store: JobStore) -> None:
    done = job(store, "queued", "running", "succeeded")
    waiting = job(store, "queued")
    urgent = job(store, "queued", priority=5)
    held = job(store, "queued")
    store.note(held, holds_cluster=True)
    held = store.move(held.id, "cancelled", News("cancelled"))
    assert [one.id for one in store.unsettled()] == [urgent.id, waiting.id, held.id]
    assert done.finished_at
    assert done.started_at


def test_events_page_backwards_and_follow_forwards(store: JobStore) -> None:
    made = job(store, "queued", "running")
    newest, more = store.events(made.id, limit=2)
    assert ([event.message for event in newest], more) == (["to running", "to queued"], True)
    assert [event.message for event in store.events(made.id, after=newest[-1].id)[0]] == ["Created fine-tuning job."]
    assert [event.message for event in store.events_since(made.id, newest[-1].seq)] == ["to running"]
    with pytest.raises(NotFoundError, match="no such event"):
        store.events(made.id, after="ftevent-0")
