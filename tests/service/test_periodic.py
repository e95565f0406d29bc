"""What the job service does again and again, and that an error costs one turn, never the rest."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import ray
import sqlalchemy as sa

from bco_ray.control.job import News, Order
from bco_ray.control.jobs import JobStore
from bco_ray.control.lease import SECONDS, Lease
from bco_ray.control.ray_jobs import Cluster
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.control.webhooks import WebhookStore
from bco_ray.service.app import Jobs, every, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.storage.database import open_database


def test_an_error_is_told_and_the_next_turn_comes(caplog: pytest.LogCaptureFixture) -> None:
    turns, threads = list[int](), set[int]()

    def work() -> None:
        turns.append(len(turns))
        threads.add(threading.get_ident())
        if len(turns) < 3:
            raise RuntimeError("no luck")

    async def some_turns() -> None:
        task = asyncio.create_task(every(0.001, work, "it failed"))
        while len(turns) < 5:
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(some_turns(), 30))
    assert caplog.text.count("RuntimeError: no luck") == 2
    assert threading.get_ident() not in threads


def test_jobs_looks_sweeps_and_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside jobs: a cancelled one needs no cluster to lie in the archive, an upload that broke off goes."""
    monkeypatch.setattr("bco_ray.service.app.cluster_session", lambda: "here")  # asked for, Ray would start one
    engine = open_database(tmp_path)
    request = JobRequest(model="/models/base", training_file="votes.jsonl")
    spec = spec_of(request, "ftjob-1", str(tmp_path), log="votes.jsonl", register_as="bot").model_dump(mode="json")
    store = job_store(engine, WebhookStore(engine))
    store.create(Order("ftjob-1", "acme", "key1", request.model_dump(mode="json"), spec, {}, "hash"))
    store.move("ftjob-1", "cancelled", News("The job was cancelled."))
    orphan = tmp_path / "files" / f".file-{0:024d}.abc.tmp"
    orphan.mkdir(parents=True)
    os.utime(orphan, (0, 0))
    archived = tmp_path / "archive" / "ftjob-1" / "job.json"

    async def until_done() -> None:
        jobs = object.__new__(Jobs)  # as Serve does: its __init__ is awaited
        await Jobs.__init__(jobs, ServiceArgs(  # type: ignore[misc]
            model_id="m/1", model_dir=tmp_path, storage=tmp_path, archive=str(tmp_path / "archive")
        ))  # fmt: skip
        while orphan.exists() or not archived.exists():
            await jobs.check_health()
            await asyncio.sleep(0.01)
        for task in jobs._tasks:
            task.cancel()
        await asyncio.gather(*jobs._tasks, return_exceptions=True)

    connected = ray.is_initialized()
    asyncio.run(asyncio.wait_for(until_done(), 30))
    assert ray.is_initialized() == connected


@dataclass
class SlowCluster:
    """Its Ray takes its time, and after each answer another cluster asks whether it may look."""

    now: list[float]
    another: Lease
    takes_over: bool = False

    def submit(self, submission: str, job_id: str, attempt: int) -> None: ...

    def state(self, submission: str) -> str:
        self.now[0] += 0.6 * SECONDS
        self.takes_over |= self.another.held()
        return "running"

    def stop(self, submission: str) -> None: ...


def at_work(store: JobStore, storage: Path, name: str) -> None:
    """A job on the cluster."""
    request = JobRequest(model="/models/base", training_file="votes.jsonl")
    spec = spec_of(request, name, str(storage), log="votes.jsonl", register_as="bot").model_dump(mode="json")
    job, _ = store.create(Order(name, "acme", "key1", request.model_dump(mode="json"), spec, {}, "hash"))
    job = store.move(job.id, "queued", News("queued"))
    store.note(job, attempt=1, submission=f"{name}-1", holds_cluster=True)


def jobs_on(engine: sa.Engine, storage: Path, now: list[float]) -> tuple[Reconciler, SlowCluster, Lease]:
    """Three at work; who looks after them, on what cluster, and whose turn it is."""
    store, (mine, another) = JobStore(engine), (Lease(engine, "jobs", name, lambda: now[0]) for name in ("a", "b"))
    for number in range(3):
        at_work(store, storage, f"ftjob-{number}")
    slow = SlowCluster(now, another)
    return Reconciler(store, cast(Cluster, slow), storage), slow, mine


def test_a_look_that_takes_longer_than_a_turn_keeps_it(tmp_path: Path) -> None:
    """Else another cluster, whose Ray knows none of these jobs, would call them lost while they are looked after."""
    reconciler, slow, mine = jobs_on(open_database(tmp_path), tmp_path, [1000.0])
    Jobs._look(SimpleNamespace(), mine, reconciler)  # type: ignore[arg-type]
    assert not slow.takes_over
    assert slow.now[0] == 1000.0 + 3 * 0.6 * SECONDS


def test_who_has_lost_its_turn_looks_at_no_further_job(tmp_path: Path) -> None:
    reconciler, slow, mine = jobs_on(open_database(tmp_path), tmp_path, [1000.0])
    assert mine.held()
    slow.now[0] += 2 * SECONDS
    assert slow.another.held()
    reconciler.run_once(mine.held)
    assert slow.now[0] == 1000.0 + 2 * SECONDS
