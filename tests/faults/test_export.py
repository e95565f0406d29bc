"""Exporters killed before each of their file operations, alone and beside another: the next one makes it as if nothing
had been."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bco_ray.storage import export as exporting
from bco_ray.storage import files
from bco_ray.storage.export import FeedbackManifest, export, load_manifest, newest_manifest, verify_segments
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.salt import SALT_FILE, SALT_VARIABLE

EXPORTER = Path(__file__).parent / "exporter.py"
IMPORTS = ("bco_ray.storage.export",)
ANSWER = "chatcmpl-1"

Exported = tuple[int, int, list[dict[str, Any]], set[str]]


@pytest.fixture(autouse=True)
def _as_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports made here are cut like those of the script, with the salt that lies in the storage."""
    monkeypatch.delenv(SALT_VARIABLE, raising=False)
    monkeypatch.setattr(exporting, "SEGMENT_ROWS", 3)


def vote(storage: Path, *users: str) -> None:
    log = FeedbackLog.open(storage)
    for user in users:
        log.add_vote(Vote(response_id=ANSWER, label=True, user=user))
    log.close()


@pytest.fixture
def storage(faults: Any) -> Path:
    """A log with five votes, below the root."""
    storage: Path = faults.root / "storage"
    log = FeedbackLog.open(storage)
    hello = [{"role": "user", "content": "hello"}]
    log.add_completion(Completion(ANSWER, 0.0, "m/1", "fp", hello, [1], [Choice("hi", [1], "stop")], {}))
    log.close()
    vote(storage, *"abcde")
    return storage


def exported(storage: Path, *, salted_alike: bool = True) -> Exported:
    """What is exported, checked: equal for equal exports. Files made with another salt have other bytes."""
    directory = storage / "feedback"
    manifest = load_manifest(directory)
    verify_segments(directory, manifest)
    kept = {"file", "rows", "from_seq", "to_seq", *(["sha256"] if salted_alike else [])}
    names = {path.name for path in directory.iterdir()}
    return manifest.number, manifest.watermark, [s.model_dump(include=kept) for s in manifest.segments], names


def check_readable(storage: Path) -> None:
    """A reader who comes now finds a whole manifest, or none."""
    if manifest := newest_manifest(storage / "feedback"):
        verify_segments(storage / "feedback", manifest)


@pytest.mark.parametrize("before", ["nothing", "an export"], ids="after {}".format)
def test_killed_before_each_file_operation(faults: Any, storage: Path, tmp_path: Path, before: str) -> None:
    nursery, alike = faults.nursery(*IMPORTS), before == "an export"
    if alike:
        assert nursery.run(EXPORTER, storage, "3").status == 0
        vote(storage, *"abfgh")
    shutil.copytree(storage, tmp_path / "start")
    faults.operations()
    assert nursery.run(EXPORTER, storage, "3").status == 0
    undisturbed, operations = exported(storage, salted_alike=alike), faults.operations()
    for nth in range(1, len(operations) + 1):
        shutil.rmtree(storage)
        shutil.copytree(tmp_path / "start", storage)
        outcome = nursery.run(EXPORTER, storage, "3", kill=faults.before(nth))
        assert (outcome.status, outcome.fired) == (-9, True), operations[nth - 1]
        check_readable(storage)
        export(FeedbackLog.open(storage), storage / "feedback")
        assert exported(storage, salted_alike=alike) == undisturbed, operations[nth - 1]
        assert not list(storage.glob(f".{SALT_FILE}.*.tmp")), "a secret lies about"
    faults.report("export", kills=len(operations), lost=0, doubled=0)


def test_two_at_once_and_one_of_them_killed(faults: Any, storage: Path, tmp_path: Path) -> None:
    nursery = faults.nursery(*IMPORTS)
    assert nursery.run(EXPORTER, storage, "3").status == 0
    vote(storage, *"abfgh")
    shutil.copytree(storage, tmp_path / "start")
    faults.operations()
    assert nursery.run(EXPORTER, storage, "3").status == 0
    undisturbed, operations = exported(storage), faults.operations()
    points = faults.sample(range(1, len(operations) + 1))
    for nth in points:
        shutil.rmtree(storage)
        shutil.copytree(tmp_path / "start", storage)
        faults.arm(faults.before(nth))
        both = [nursery.start(EXPORTER, storage, "3") for _ in range(2)]
        assert sorted(child.wait() for child in both) == [-9, 0], [child.output for child in both]
        assert exported(storage) == undisturbed, operations[nth - 1]
    faults.report("export", kills=len(points), lost=0, doubled=0)


def all_ids(storage: Path, watermark: int) -> list[str]:
    with sqlite3.connect(storage / "bco.db") as connection:
        query = "SELECT id FROM votes WHERE seq <= ? ORDER BY seq"
        return [found for (found,) in connection.execute(query, (watermark,))]


def test_rounds_while_votes_arrive(faults: Any, storage: Path) -> None:
    """Each round has every vote up to its watermark once, for ever, whatever comes and dies after it."""
    nursery, stop = faults.nursery(*IMPORTS), threading.Event()

    def keep_voting() -> None:
        log = FeedbackLog.open(storage)
        for label in cycle((True, False)):  # the same vote again would be no new one
            log.add_vote(Vote(response_id=ANSWER, label=label, user="ann"))
            if stop.wait(0.01):
                break
        log.close()

    voter = threading.Thread(target=keep_voting)
    voter.start()
    rounds, digests, kills = list[FeedbackManifest](), dict[str, str](), 0
    try:
        for _ in range(2 * faults.points):
            kill = faults.before(faults.rng.randint(1, 25), path="^storage/feedback/")
            kills += nursery.run(EXPORTER, storage, "3", kill=kill).fired
            rounds.append(pinned_round(storage))
            new = {segment.file for segment in rounds[-1].segments} - digests.keys()
            digests |= {name: files.sha256(storage / "feedback" / name) for name in new}
    finally:
        stop.set()
        voter.join(60)
    check_rounds(storage, rounds, digests)
    faults.report("rounds", rounds=len(rounds), kills=kills, votes=rounds[-1].watermark, lost=0, doubled=0)


def pinned_round(storage: Path) -> FeedbackManifest:
    before = len(all_ids(storage, 1 << 40))
    log = FeedbackLog.open(storage)
    manifest = export(log, storage / "feedback")
    log.close()
    assert manifest is not None
    assert manifest.watermark >= before, "a vote that was acknowledged before the round is in it"
    return manifest


def check_rounds(storage: Path, rounds: list[FeedbackManifest], digests: dict[str, str]) -> None:
    """`digests` of the segments, each as it was when a round first named it."""
    directory, final = storage / "feedback", rounds[-1]
    assert {s.file: files.sha256(directory / s.file) for s in final.segments} == digests
    assert [i for s in final.segments for i in pq.read_table(directory / s.file)["id"].to_pylist()] == all_ids(
        storage, final.watermark
    )
    for manifest in rounds:
        assert load_manifest(directory, manifest.number) == manifest
        assert manifest.segments == final.segments[: len(manifest.segments)]
        assert manifest.rows == len(all_ids(storage, manifest.watermark))
