"""What is counted of jobs, by whom, and when."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bco_ray.control import metrics
from bco_ray.control.deciding import MOST_LOSSES, RayState
from bco_ray.control.job import Job, News, Order, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.metrics import JobMetrics
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.control.webhooks import Outcome
from bco_ray.errors import ClusterError, ConflictError
from bco_ray.storage.database import open_database
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry.meters import Meter


class Kept:
    """Sums of counters, values of gauges, all of a histogram's."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.values: dict[str, Any] = {}

    def record(self, meter: Meter, value: float, **labels: str) -> None:
        assert labels.keys() == set(meter.labels)
        name = "/".join((meter.name, *labels.values()))
        if meter.kind == "counter":
            assert value >= 0
            self.sums[name] += value  # type: ignore[assignment]
        elif meter.kind == "gauge":
            self.values[name] = value
        else:
            self.values.setdefault(name, []).append(value)

    @property
    def counted(self) -> dict[str, float]:
        looks = metrics.LOOKS.name
        return {name: value for name, value in self.sums.items() if value and name != looks}


class Cluster:
    def __init__(self) -> None:
        self.says: dict[str, RayState] = {}
        self.down = False

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        self.says[submission] = "running"

    def state(self, submission: str) -> RayState:
        if self.down:
            raise ClusterError("nobody there")
        return self.says.get(submission, "unknown")

    def stop(self, submission: str) -> None:
        self.says[submission] = "stopped"


class Site:
    def __init__(self, storage: Path) -> None:
        self.storage, self.kept, self.cluster = storage, Kept(), Cluster()
        self.metrics = JobMetrics(self.kept)
        self.store = JobStore(open_database(storage), changed=self.metrics.changed)
        self.reconciler = Reconciler(self.store, self.cluster, storage, metrics=self.metrics)

    def job(self, key: str | None = None) -> Job:
        request, name = JobRequest(model="/models/base", training_file="votes.jsonl"), new_id("ftjob")
        spec = spec_of(request, name, str(self.storage), log="votes.jsonl", register_as="bot").model_dump(mode="json")
        sent = request.model_dump(mode="json", exclude_unset=True)
        return self.store.create(Order(name, "acme", "key1", sent, spec, {}, "hash", idempotency_key=key))[0]

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.reconciler.run_once()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_job_from_its_request_to_its_end(site: Site) -> None:
    job = site.job()
    site.look(3)
    JobDirectory(site.storage, job.id).write("outcome", {"model": "bot/1"})
    site.look(3)
    assert site.kept.counted == {
        "bco_jobs_created": 1, "bco_job_attempts": 1, "bco_jobs_started": 1, "bco_jobs_ended/succeeded": 1,
    }  # fmt: skip
    (waited,) = site.kept.values["bco_job_queue_seconds"]
    assert 0 <= waited < 60


def test_sent_again_it_is_no_new_one(site: Site) -> None:
    site.job("round-7")
    site.job("round-7")
    assert site.kept.counted == {"bco_jobs_created": 1}


def test_every_lost_attempt_is_counted_the_last_one_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bco_ray.control.deciding.AGAIN_SECONDS", (0.0,))
    site.job()
    site.look(3)
    for lost in range(1, MOST_LOSSES + 1):
        site.cluster.says.clear()
        site.look(3)
        assert site.kept.counted["bco_job_attempts_lost"] == lost
        worst = lost if lost < MOST_LOSSES else 0
        assert site.kept.values["bco_job_losses_in_a_row"] == worst
    assert site.kept.counted["bco_jobs_ended/failed"] == 1
    assert site.kept.counted["bco_jobs_started"] == 1


def test_pausing_and_resuming_lose_nothing(site: Site) -> None:
    job = site.job()
    site.look(3)
    site.store.move(job.id, "paused", News("pause"))
    site.look(4)
    assert site.kept.values["bco_jobs/paused"] == 1
    site.store.move(job.id, "queued", News("resume"))
    site.look(3)
    site.store.move(job.id, "cancelled", News("stop"))
    counted = site.kept.counted
    assert counted["bco_job_attempts"] == 2
    assert counted["bco_jobs_ended/cancelled"] == 1
    assert "bco_job_attempts_lost" not in counted


def test_gpus_are_charged_as_the_budget_has_them(site: Site) -> None:
    job = site.job()
    for seconds in (0.0, 30.0, 90.0):
        spent = {"seconds": seconds, "gpu_seconds": 8 * seconds, "tokens": 0, "at": seconds}
        job = site.store.note(job, details={"spent": spent})
    assert site.kept.counted["bco_job_gpu_seconds"] == 720


def test_who_waits_and_for_how_long(site: Site) -> None:
    site.look()
    assert site.kept.values["bco_job_oldest_wait_seconds"] == 0
    site.job()
    site.look(2)
    assert site.kept.values["bco_jobs/queued"] == 1
    assert 0 < site.kept.values["bco_job_oldest_wait_seconds"] < 60
    site.look(2)
    assert (site.kept.values["bco_jobs/queued"], site.kept.values["bco_jobs/running"]) == (0, 1)
    assert site.kept.values["bco_job_oldest_wait_seconds"] == 0


def test_looks_tell_when_and_what_they_could_not_settle(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.job()
    site.look(3)
    site.cluster.down = True
    site.look()
    site.cluster.down = False
    monkeypatch.setattr(site.reconciler, "_act", _late)
    site.look()
    assert site.kept.sums["bco_reconciler_looks"] == 5
    assert site.kept.sums["bco_reconciler_errors/cluster"] == 1
    assert site.kept.sums["bco_reconciler_errors/conflict"] == 1
    assert time.time() - site.kept.values["bco_reconciler_last_look_timestamp_seconds"] < 60
    assert 0 < site.kept.values["bco_storage_free_bytes"] <= site.kept.values["bco_storage_size_bytes"]


def _late(*_: object, **__: object) -> None:
    raise ConflictError("somebody was faster")


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome(204, None, delivered_at=1.0, next_at=None), "delivered"),
        (Outcome(500, "the endpoint answered 500", delivered_at=None, next_at=9.0), "failed"),
        (Outcome(410, "gone", delivered_at=None, next_at=None), "given_up"),
    ],
)
def test_deliveries(site: Site, outcome: Outcome, result: str) -> None:
    site.metrics.delivered(outcome)
    assert site.kept.counted == {f"bco_webhook_deliveries/{result}": 1}


def test_a_job_takes_its_project_and_trace_to_its_driver(site: Site) -> None:
    job = site.job()
    site.look()
    assert JobDirectory(site.storage, job.id).origin == {"project": "acme", "traceparent": None}
