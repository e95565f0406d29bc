"""What of a job lies in the archive, in a directory and in an object store, and when it is sent again."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from bco_ray.control import wire
from bco_ray.control.archive import Archive
from bco_ray.control.job import Job, News, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.service.args import ServiceArgs
from bco_ray.storage.database import open_database
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.stores import open_store
from bco_ray.testing.faulty_store import Fault, FaultyStore

ALL = {"driver.log", "events.jsonl", "job.json", "outcome.json", "spec.yaml"}


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "archive")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@dataclass
class Site:
    storage: Path
    place: str
    url: str | None = None

    def __post_init__(self) -> None:
        self.jobs = JobStore(open_database(self.storage, self.url))
        self.archive = Archive(self.jobs, self.storage, self.place)

    def job(self) -> Job:
        job_id, request = new_id("ftjob"), JobRequest(model="/models/base", training_file="votes.jsonl")
        spec = spec_of(request, job_id, str(self.storage), log="votes.jsonl", register_as="bot")
        sent = request.model_dump(mode="json", exclude_unset=True)
        order = Order(job_id, "acme", "key1", sent, spec.model_dump(mode="json"), {}, body_hash(sent))
        return self.jobs.create(order)[0]

    def running(self) -> Job:
        job = self.jobs.move(self.job().id, "queued", News("queued"))
        job = self.jobs.note(job, attempt=1, holds_cluster=True, submission=f"{job.id}-1")
        directory = JobDirectory(self.storage, job.id)
        directory.path.mkdir(parents=True)
        directory.spec.write_text("name: x\n")
        self.says(job, "one\n")
        return self.jobs.move(job.id, "running", News("running"))

    def says(self, job: Job, text: str) -> None:
        with JobDirectory(self.storage, job.id).log.open("a") as log:
            log.write(text)

    def ended(self, job: Job) -> Job:
        JobDirectory(self.storage, job.id).write("outcome", {"model": "bot/1"})
        done = self.jobs.move(job.id, "succeeded", News("done"), outcome={"model": "bot/1"})
        return self.jobs.note(done, [News("The cluster is free of it.")], holds_cluster=False)

    def kept(self, job: Job) -> dict[str, bytes]:
        store = open_store(self.place)
        return {name.removeprefix(f"{job.id}/"): store.get(name) for name in store.sizes(job.id)}


def sent(site: Site, *faults: Fault) -> list[str]:
    """What one look puts into the archive."""
    store = site.archive._store = FaultyStore(open_store(site.place))
    for fault in faults:
        store.add(fault)
    site.archive.run_once()
    return [name.partition("/")[2] for operation, name in store.calls if operation == "put"]


def test_all_of_a_job_that_has_ended(tmp_path: Path, place: str) -> None:
    site = Site(tmp_path, place)
    job = site.ended(site.running())
    site.archive.run_once()
    kept = site.kept(job)
    assert kept.keys() == ALL
    assert (kept["driver.log"], kept["spec.yaml"]) == (b"one\n", b"name: x\n")
    assert json.loads(kept["outcome.json"]) == {"model": "bot/1"}
    assert json.loads(kept["job.json"]) == wire.job(job)
    assert (json.loads(kept["job.json"])["status"], json.loads(kept["job.json"])["fine_tuned_model"]) == (
        "succeeded", "bot/1",
    )  # fmt: skip
    events = [json.loads(line) for line in kept["events.jsonl"].splitlines()]
    assert events == [wire.event(event) for event in site.jobs.events(job.id)[0]][::-1]
    assert events[-1]["message"] == "The cluster is free of it."


def test_while_it_runs_what_is_new_is_sent_and_nothing_twice(tmp_path: Path, place: str) -> None:
    site = Site(tmp_path, place)
    waits, job = site.job(), site.running()
    assert sent(site) == ["driver.log", "spec.yaml", "events.jsonl", "job.json"]
    assert sent(site) == []
    assert sent(Site(tmp_path, place)) == [], "nor by a server that has just started"
    site.says(job, "two\n")
    assert sent(site) == ["driver.log"]
    job = site.jobs.note(job, [News("Step 1/9", type="metrics", data={"step": 0})], details={"percent": 10.0})
    assert sent(site) == ["events.jsonl", "job.json"]
    site.jobs.note(job, details={"percent": 20.0})
    assert sent(site) == ["job.json"], "though it is no longer than before"
    assert json.loads(site.kept(job)["job.json"])["status_details"]["percent"] == 20
    assert site.kept(waits) == {}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_end_is_sent_once_also_if_nobody_was_there(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgresql") if database == "postgresql" else None
    site, elsewhere = (Site(tmp_path, str(tmp_path / name), url) for name in ("archive", "elsewhere"))
    held, job = site.running(), site.ended(site.running())
    assert [one.id for one in site.jobs.unarchived(site.place)] == [job.id]
    site.archive.run_once()
    assert site.jobs.unarchived(site.place) == []
    assert sent(site) == []
    site.ended(held)
    assert sent(Site(tmp_path, site.place, url)) == ["outcome.json", "events.jsonl", "job.json"]
    assert [one.id for one in site.jobs.unarchived(elsewhere.place)] == [held.id, job.id]
    elsewhere.archive.run_once()
    assert elsewhere.kept(job).keys() == ALL


def test_what_ends_again_is_sent_again(tmp_path: Path) -> None:
    """As a job would that is taken up again after its end."""
    site = Site(tmp_path, str(tmp_path / "archive"))
    job = site.ended(site.running())
    site.archive.run_once()
    again = site.jobs.note(site.jobs.get(job.id), [News("Once more.")], finished_at=9e9)
    assert [one.id for one in site.jobs.unarchived(site.place)] == [job.id]
    site.archive.run_once()
    assert json.loads(site.kept(again)["job.json"])["finished_at"] == 9_000_000_000
    assert b"Once more." in site.kept(again)["events.jsonl"]


def test_what_cannot_be_sent_now_is_sent_the_next_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, str(tmp_path / "archive"))
    bad, good = site.ended(site.running()), site.ended(site.running())
    sent(site, Fault("put", f"{bad.id}/events.jsonl"))
    assert f"{bad.id} is not in the archive yet" in caplog.text
    assert site.kept(good).keys() == ALL
    assert [one.id for one in site.jobs.unarchived(site.place)] == [bad.id]
    site.archive.run_once()
    assert site.kept(bad).keys() == ALL
    assert site.jobs.unarchived(site.place) == []


def test_a_place_that_comes_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mount").write_text("not a directory")
    site = Site(tmp_path, str(tmp_path / "mount" / "archive"))
    job = site.ended(site.running())
    site.archive.run_once()
    assert f"{job.id} is not in the archive yet" in caplog.text
    assert "no such directory can be made" in caplog.text
    (tmp_path / "mount").unlink()
    site.archive.run_once()
    assert site.kept(job).keys() == ALL


def test_a_job_without_a_word(tmp_path: Path) -> None:
    """Cancelled before its driver began."""
    site = Site(tmp_path, str(tmp_path / "archive"))
    job = site.jobs.move(site.job().id, "cancelled", News("The job was cancelled."))
    site.archive.run_once()
    assert site.kept(job).keys() == {"events.jsonl", "job.json"}


@pytest.mark.parametrize("archive", ["hf://datasets/a/b", "https://bucket/x", ""])
def test_places_that_cannot_be_written_to(tmp_path: Path, archive: str) -> None:
    with pytest.raises(ValidationError, match="archive"):
        ServiceArgs(model_id="m/1", model_dir=tmp_path, storage=tmp_path, archive=archive)
