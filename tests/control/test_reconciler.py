"""What is done about a job, against a cluster that can be told what to say."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bco_ray.control import deciding
from bco_ray.control.deciding import MOST_LOSSES, Known, RayState, decide
from bco_ray.control.job import Job, News, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.reconciler import Reconciler, Room
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.errors import ClusterError, ConflictError
from bco_ray.storage import files
from bco_ray.storage.database import open_database
from bco_ray.storage.job_directory import JobDirectory


@dataclass
class FakeCluster:
    """`says` is what it knows of submissions."""

    says: dict[str, RayState] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    down: bool = False

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        self._up()
        assert submission == f"{job_id}-{attempt}"
        self.says.setdefault(submission, "pending")

    def state(self, submission: str) -> RayState:
        self._up()
        return self.says.get(submission, "unknown")

    def stop(self, submission: str) -> None:
        self._up()
        self.stopped.append(submission)

    def _up(self) -> None:
        if self.down:
            raise ClusterError("nobody there")


@dataclass
class Site:
    storage: Path
    room: Room = field(default_factory=Room)
    cluster: FakeCluster = field(default_factory=FakeCluster)

    def __post_init__(self) -> None:
        self.store = JobStore(open_database(self.storage))
        self.reconciler = Reconciler(self.store, self.cluster, self.storage, self.room)

    def job(self, project: str = "acme", **changes: Any) -> Job:
        job_id = new_id("ftjob")
        request = JobRequest(model="/models/base", training_file="votes.jsonl")
        spec = spec_of(request, job_id, str(self.storage), log="votes.jsonl", register_as="bot")
        sent = request.model_dump(mode="json", exclude_unset=True)
        order = Order(job_id, project, "key", sent, spec.model_dump(mode="json"), {}, body_hash(sent))
        return self.store.create(replace(order, **changes))[0]

    def look(self, job: Job, times: int = 1) -> Job:
        for _ in range(times):
            self.reconciler.run_once()
        return self.store.get(job.id)

    def messages(self, job: Job) -> list[str]:
        return [event.message for event in self.store.events(job.id, limit=100)[0]][::-1]

    def directory(self, job: Job) -> JobDirectory:
        return JobDirectory(self.storage, job.id)

    def running(self) -> Job:
        job = self.look(self.job(), 2)
        self.cluster.says[f"{job.id}-1"] = "running"
        return self.look(job)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_from_the_request_to_the_registered_model(site: Site) -> None:
    job = site.look(site.job())
    assert job.status == "queued"
    assert site.directory(job).spec.is_file()
    assert site.look(job).submission == f"{job.id}-1"
    site.cluster.says[f"{job.id}-1"] = "running"
    assert site.look(job).status == "running"
    site.directory(job).write("outcome", {"model": "bot/1", "evaluation": {}, "trained_tokens": 7})
    site.cluster.says[f"{job.id}-1"] = "succeeded"
    done = site.look(job)
    assert (done.status, done.outcome and done.outcome["model"]) == ("succeeded", "bot/1")
    assert not site.look(done).holds_cluster
    assert site.store.unsettled() == []
    assert "New fine-tuned model created: bot/1." in site.messages(job)


@pytest.mark.parametrize("status", ["cancelled", "paused"])
def test_what_is_not_wanted_is_stopped_until_it_is_gone(site: Site, status: Any) -> None:
    job = site.running()
    site.store.move(job.id, status, News("stop"))
    assert site.look(job, 2).holds_cluster
    assert set(site.cluster.stopped) == {f"{job.id}-1"}
    site.cluster.says[f"{job.id}-1"] = "stopped"
    assert not site.look(job).holds_cluster
    assert site.look(job, 3).status == status
    assert list(site.cluster.says) == [f"{job.id}-1"]


def test_resumed_before_it_had_stopped_it_ends_and_starts_again(site: Site) -> None:
    job = site.running()
    site.store.move(job.id, "paused", News("pause"))
    site.look(job)
    site.store.move(job.id, "queued", News("resume"))
    assert site.look(job, 2).attempt == 1
    site.cluster.says[f"{job.id}-1"] = "stopped"
    assert site.look(job, 2).submission == f"{job.id}-2"
    assert not any("lost" in message for message in site.messages(job))


def test_a_cluster_that_forgot_it_gets_it_again(site: Site) -> None:
    job = site.running()
    site.cluster.says.clear()
    lost = site.look(job)
    assert (lost.status, lost.holds_cluster) == ("queued", False)
    assert site.look(job).submission == f"{job.id}-2"
    assert any("was lost" in message for message in site.messages(job))


def test_killed_between_writing_down_and_submitting(site: Site) -> None:
    job = site.look(site.job())
    site.cluster.down = True
    site.look(job)
    site.cluster.down = False
    site.cluster.submit = lambda *_: None  # type: ignore[method-assign]
    assert site.look(job).submission == f"{job.id}-1"
    del site.cluster.submit
    site.look(job)
    assert site.cluster.says == {f"{job.id}-1": "pending"}
    assert site.look(job).attempt == 1


def test_an_error_of_its_own_ends_it(site: Site) -> None:
    job = site.running()
    site.directory(job).write("error", {"attempt": 1, "code": "data_error", "message": "votes.jsonl: no such file."})
    site.cluster.says[f"{job.id}-1"] = "failed"
    failed = site.look(job)
    assert failed.status == "failed"
    assert failed.error == {"code": "data_error", "message": "votes.jsonl: no such file.", "param": None}


def test_an_earlier_attempts_error_is_not_this_ones(site: Site) -> None:
    job = site.running()
    site.directory(job).write("error", {"attempt": 0, "code": "data_error", "message": "no"})
    site.cluster.says[f"{job.id}-1"] = "failed"
    assert site.look(job).status == "queued"


def test_losses_in_a_row_end_it_and_a_checkpoint_begins_a_new_row(site: Site) -> None:
    job = replace(site.running(), status="running", details={"losses": MOST_LOSSES - 1})
    assert isinstance(decide(job, Known("failed")), deciding.Fail)
    moved = decide(job, Known("failed", checkpoint=50))
    assert isinstance(moved, deciding.Requeue)
    assert (moved.losses, moved.seconds) == (1, 0.0)


def test_a_model_that_is_registered_counts_whatever_ray_says(site: Site) -> None:
    for ray in ("pending", "running", "succeeded", "failed", "stopped", "unknown"):
        job = replace(site.job(), status="running", holds_cluster=True, submission="x", attempt=1)
        assert decide(job, Known(ray, outcome={"model": "bot/1"})) == deciding.Succeed()


def test_a_cluster_that_is_down_changes_nothing(site: Site) -> None:
    job = site.running()
    before = site.store.get(job.id)
    site.cluster.down = True
    assert site.look(job, 3) == before


def test_a_job_says_that_it_waits_for_the_cluster(site: Site) -> None:
    job = site.look(site.job())

    def busy(*_: object) -> None:
        raise ClusterError("No available agent")

    site.cluster.submit = busy  # type: ignore[method-assign]
    assert site.look(job, 2).details["waiting_for"] == "the cluster: No available agent"
    del site.cluster.submit
    assert site.look(job, 2).details["waiting_for"] == "the cluster to start it"
    site.cluster.says[f"{job.id}-1"] = "running"
    assert site.look(job).details["waiting_for"] is None


def test_projects_and_the_server_have_limits_and_say_so(tmp_path: Path) -> None:
    site = Site(tmp_path, Room(jobs=3, of_project=1, of_key={"small": 1}.get))
    acme, second = site.job(), site.job()
    small, third = (site.job(project, created_by="small") for project in ("a", "b"))
    last, full = site.job("c"), site.job("d")
    site.look(acme, 3)
    held = {job.id: site.store.get(job.id).holds_cluster for job in (acme, second, small, third, last, full)}
    assert list(held.values()) == [True, False, True, False, True, False]
    assert "project acme has 1 jobs on the cluster, the most" in site.store.get(second.id).details["waiting_for"]
    assert "its key has 1 jobs on the cluster, the most" in site.store.get(third.id).details["waiting_for"]
    assert "there are 3 jobs on the cluster, the most" in site.store.get(full.id).details["waiting_for"]
    site.directory(acme).write("outcome", {"model": "bot/1"})
    site.cluster.says[f"{acme.id}-1"] = "succeeded"
    assert site.look(second, 3).holds_cluster


def test_who_has_used_up_what_its_key_may_waits(tmp_path: Path) -> None:
    lacks = {"small": "the next month"}
    site = Site(tmp_path, Room(used_up=lacks.get))
    small, other = site.job(created_by="small"), site.job()
    assert site.look(small, 2).details["waiting_for"] == "the next month"
    assert [site.store.get(job.id).holds_cluster for job in (small, other)] == [False, True]
    lacks.clear()
    assert site.look(small, 2).holds_cluster


def test_the_more_urgent_goes_first(tmp_path: Path) -> None:
    site = Site(tmp_path, Room(jobs=1))
    site.job()
    urgent = site.job(priority=5)
    assert site.look(urgent, 2).holds_cluster


def test_steps_become_events_once_and_not_all_of_them(site: Site, tmp_path: Path) -> None:
    job, run = site.running(), tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    site.directory(job).write("resolved", {"spec": job.spec, "run": str(run)})
    site.directory(job).write("progress", {"phase": "train", "percent": 10.0, "eta_seconds": 3.0})

    def write(steps: range) -> None:
        rows = ({"step": step, "total_steps": 1000, "loss": 0.5, "delta": 0.1} for step in steps)
        files.write_bytes(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    write(range(55))
    site.look(job)
    write(range(1000))  # a resumed training does steps again
    site.look(job, 2)
    events = [event for event in site.store.events_since(job.id, 0) if event.type == "metrics"]
    steps = [event.data["step"] for event in events]
    assert steps == sorted(set(steps)) == [*range(0, 1000, 10), 999]
    assert events[0].data["train_loss"] == 0.5
    assert site.store.get(job.id).details["phase"] == "train"


def test_what_is_wrong_with_one_is_in_nobodys_way(site: Site) -> None:
    of_another_version, unwritable, job = site.job(spec={"name": "x"}), site.job(), site.job()
    (site.storage / "jobs").mkdir()
    (site.storage / "jobs" / unwritable.id).write_text("a file where its directory should be")
    assert site.look(job, 2).holds_cluster
    failed = site.store.get(of_another_version.id)
    assert (failed.status, failed.error and failed.error["code"]) == ("failed", "spec_error")
    assert site.store.get(unwritable.id).status == "validating_files"
    (site.storage / "jobs" / unwritable.id).unlink()
    assert site.look(unwritable).status == "queued"


class Steps:
    """A run on disk that has done some steps."""

    def __init__(self, site: Site, job: Job) -> None:
        self.run = site.storage / "runs" / job.id
        site.directory(job).write("resolved", {"spec": job.spec, "run": str(self.run)})

    def write(self, steps: int) -> None:
        rows = (json.dumps({"step": step, "total_steps": 9, "loss": 0.5}) + "\n" for step in range(steps))
        files.write_bytes(self.run / "metrics.jsonl", "".join(rows).encode())


def told_steps(site: Site, job: Job) -> list[int]:
    return [event.data["step"] for event in site.store.events_since(job.id, 0) if event.type == "metrics"]


def test_steps_read_while_somebody_else_was_faster_are_told_next_time(site: Site, monkeypatch: Any) -> None:
    job = site.running()
    Steps(site, job).write(3)
    note = site.store.note

    def paused_and_resumed_meanwhile(*args: Any, **changes: Any) -> Job:
        site.store.move(job.id, "paused", News("pause"))
        site.store.move(job.id, "queued", News("resume"))
        return note(*args, **changes)

    monkeypatch.setattr(site.store, "note", paused_and_resumed_meanwhile)
    site.look(job)
    monkeypatch.undo()
    assert told_steps(site, job) == []
    site.look(job, 2)
    assert told_steps(site, job) == [0, 1, 2]


def test_two_who_saw_the_same_tell_it_once(site: Site) -> None:
    job = site.running()
    Steps(site, job).write(3)
    site.reconciler._watch(job, running=True)
    with pytest.raises(ConflictError, match="has changed"):
        Reconciler(site.store, site.cluster, site.storage)._watch(job, running=True)
    assert told_steps(site, job) == [0, 1, 2]
    site.directory(job).write("outcome", {"model": "bot/1"})
    seen = site.store.get(job.id)
    site.reconciler._succeed(seen)
    with pytest.raises(ConflictError):
        Reconciler(site.store, site.cluster, site.storage)._succeed(seen)
    assert site.messages(job).count("New fine-tuned model created: bot/1.") == 1


def test_the_last_steps_of_one_that_failed_are_told(site: Site) -> None:
    job = site.running()
    Steps(site, job).write(5)
    site.directory(job).write("error", {"attempt": 1, "code": "training_error", "message": "the loss is not finite"})
    site.cluster.says[f"{job.id}-1"] = "failed"
    assert site.look(job).status == "failed"
    assert told_steps(site, job) == [0, 1, 2, 3, 4]


def test_that_it_is_stopped_is_written_down_before_the_cluster_hears_of_it(site: Site) -> None:
    """Else a job taken up again right then would count as lost."""
    job = site.running()
    site.store.move(job.id, "paused", News("pause"))
    site.cluster.stop = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]  # killed here
    with pytest.raises(KeyboardInterrupt):
        site.look(job)
    assert site.store.get(job.id).details["stopping"]


def test_two_reconcilers_submit_once(site: Site) -> None:
    job = site.look(site.job())
    other = Reconciler(site.store, site.cluster, site.storage)
    seen = site.store.get(job.id)
    site.reconciler._submit(seen)
    with pytest.raises(Exception, match="by now"):
        other._submit(seen)
    assert site.store.get(job.id).attempt == 1


def account(site: Site, job: Job, phase: str, rows: list[dict[str, int]], **training: Any) -> Path:
    """What the driver and the training of a running job leave on disk."""
    run = site.storage / "runs" / job.id
    run.mkdir(parents=True, exist_ok=True)
    spec = {**job.spec, "training": {**job.spec["training"], **training}}
    site.directory(job).write("resolved", {"spec": spec, "run": str(run)})
    site.directory(job).write("progress", {"phase": phase, "percent": 1.0, "at": time.time()})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def charge(site: Site, job: Job, seconds: float) -> Job:
    """One more look, as if so much time had passed since the last."""
    details = site.store.get(job.id).details
    spent = {**details["spent"], "at": details["spent"]["at"] - seconds}
    site.store.note(site.store.get(job.id), details={**details, "spent": spent})
    return site.look(job)


def test_a_job_pays_for_the_time_it_runs_and_the_gpus_its_workers_hold(site: Site) -> None:
    job = site.running()
    gpu = {"resources_per_worker": {"CPU": 1.0, "GPU": 2.0}, "num_workers": [1, 4]}
    account(site, job, "read", [], **gpu)
    site.look(job)
    assert charge(site, job, 100).details["spent"]["gpu_seconds"] == pytest.approx(0, abs=1)
    run = account(site, job, "train", [{"step": 0, "tokens": 5}, {"step": 1, "tokens": 7}], **gpu)
    (run / "status.json").write_text(json.dumps({"workers": 3}))
    spent = charge(site, job, 100).details["spent"]
    assert spent["seconds"] == pytest.approx(200, abs=2)
    assert spent["gpu_seconds"] == pytest.approx(600, abs=10)
    assert spent["tokens"] == 12
    site.cluster.says[f"{job.id}-1"] = "unknown"  # while nobody looked; its driver was last seen alive just now
    lost = charge(site, job, 50).details["spent"]
    assert (lost["seconds"], lost["at"]) == (pytest.approx(250, abs=3), None)
    assert site.look(job).details["spent"] == lost


def test_steps_done_again_or_taken_over_are_not_paid_for(site: Site) -> None:
    job = site.running()
    first = dict(job.spec["training"], start="other-run:2")
    site.store.note(job, spec={**job.spec, "training": first})
    rows = [{"step": step, "tokens": 10, "total_steps": 9} for step in range(5)]
    run = account(site, job, "train", rows)
    assert site.look(job).details["spent"]["tokens"] == 30
    files.write_bytes(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:4]).encode())
    assert site.look(job).details["spent"]["tokens"] == 30
    steps = [event.data["step"] for event in site.store.events(job.id, limit=100)[0] if event.type == "metrics"]
    assert steps[::-1] == [2, 3, 4]


@pytest.mark.parametrize(
    ("budget", "seconds", "words"),
    [
        ({"hours": 1}, 3601, "1 of 1 hours are used"),
        ({"gpu_hours": 2}, 3601, "2.001 of 2 gpu-hours are used"),
        ({"tokens": 12}, 0, "12 of 12 tokens are used"),
        ({"deadline": 1000.0}, 0, "the deadline, 1970-01-01T00:16:40+00:00, has passed"),
    ],
)
def test_what_a_budget_allows_and_no_more(site: Site, budget: Any, seconds: float, words: str) -> None:
    free = site.running()
    job = site.look(site.job(request={"model": "m", "budget": budget}), 2)
    if "deadline" not in budget:
        site.cluster.says[f"{job.id}-1"] = "running"
        account(site, job, "train", [{"step": 0, "tokens": 12}], resources_per_worker={"GPU": 1}, num_workers=2)
        site.look(job)
        job = charge(site, job, seconds)
    failed = site.look(job)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "budget_exceeded"
    assert words in failed.error["message"]
    assert site.store.get(free.id).status == "running"
    if failed.holds_cluster:
        site.look(job)
        assert set(site.cluster.stopped) == {f"{job.id}-1"}


def test_a_model_that_is_made_is_kept_whatever_it_cost(site: Site) -> None:
    job = site.look(site.job(request={"model": "m", "budget": {"tokens": 1}}), 2)
    site.cluster.says[f"{job.id}-1"] = "running"
    account(site, job, "train", [{"step": 0, "tokens": 12}])
    site.directory(job).write("outcome", {"model": "bot/1"})
    assert site.look(job).status == "succeeded"


def test_who_waits_for_gpus_does_not_pay_for_them(site: Site) -> None:
    job = site.running()
    run = account(site, job, "train", [], resources_per_worker={"GPU": 1.0}, num_workers=[1, 8])
    (run / "status.json").write_text(json.dumps({"workers": None, "waiting_for": "1 workers are to start"}))
    site.look(job)
    spent = charge(site, job, 3600).details["spent"]
    assert (spent["seconds"], spent["gpu_seconds"]) == (pytest.approx(0, abs=2), 0)


def test_a_job_says_what_any_phase_waits_for(site: Site) -> None:
    job = site.running()
    run = account(site, job, "score", [])
    (run / "status.json").write_text(json.dumps({"waiting_for": "2 workers: of an attempt before"}))
    assert site.look(job).details["waiting_for"] is None
    told = {"phase": "score", "waiting_for": "a machine with 1 GPU", "eta_seconds": 7.0, "at": time.time()}
    site.directory(job).write("progress", told)
    details = site.look(job).details
    assert (details["waiting_for"], details["eta_seconds"]) == ("a machine with 1 GPU", None)
    account(site, job, "train", [])
    assert site.look(job).details["waiting_for"] == "2 workers: of an attempt before"


def test_a_paused_job_has_a_deadline_too(site: Site) -> None:
    job = site.look(site.job(request={"model": "m", "budget": {"deadline": time.time() + 3600}}), 2)
    site.store.move(job.id, "paused", News("pause"))
    assert site.look(job).status == "paused"
    site.store.note(site.store.get(job.id), request={"model": "m", "budget": {"deadline": 1.0}})
    assert site.look(job).status == "failed"


def test_what_nobody_foresaw_is_in_nobody_elses_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = site.job(), site.job()
    settle = site.reconciler._settle

    def torn(job: Job) -> None:
        if job.id == first.id:
            raise KeyError("x")
        settle(job)

    monkeypatch.setattr(site.reconciler, "_settle", torn)
    assert site.look(second).status == "queued"


def test_the_clusters_fault_is_told_and_tried_again(site: Site) -> None:
    job = site.running()
    error = {"attempt": 1, "code": "cluster_error", "message": "The Ray cluster cannot be reached.", "again": True}
    site.directory(job).write("error", error)
    site.cluster.says[f"{job.id}-1"] = "failed"
    assert site.look(job).status == "queued"
    assert "Attempt 1 was lost (The Ray cluster cannot be reached); it is tried again." in site.messages(job)
