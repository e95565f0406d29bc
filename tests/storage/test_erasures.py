"""What is emptied, what stays, and what a crash in between leaves to the next erasure."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import StorageError
from bco_ray.schema import SETTLED, schema_name
from bco_ray.storage import database, erasures, files, log_erasure
from bco_ray.storage.erasures import LEDGER, Amendment, erased_names, remember_erasure
from bco_ray.storage.export import erase_segments, export, load_manifest, verify_segments
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, NotFoundError, Vote
from bco_ray.storage.quarantine import Quarantine, blank_mentions
from bco_ray.storage.records import PartFacts, RecordsManifest, commit_records, erase_records, load_records
from bco_ray.storage.salt import hash_user, user_salt

SECRET = "the secret of ann"


class KilledError(Exception):
    """As if the process had died."""


def dies(*_: object, **__: object) -> None:
    raise KilledError


def named(*names: str) -> Callable[[pa.Table], pa.Array]:
    """Rows of these users."""
    return lambda table: pc.is_in(table["user"], pa.array(names, pa.string())).combine_chunks()


def by_ann(text: bytes) -> bool:
    return b"ann" in text


@pytest.fixture
def log(tmp_path: Path) -> FeedbackLog:
    """ann asked the first thing, nobody in particular the second; both voted on both."""
    log = FeedbackLog.open(tmp_path)
    for name, user in (("r1", "ann"), ("r2", None)):
        messages = [{"role": "user", "content": f"{SECRET} {name}"}]
        log.add_completion(Completion(name, 1.0, "m/1", "fp", messages, [5], [Choice(SECRET, [6], "stop")], {}, user))
        for voter in ("ann", "bob"):
            log.add_vote(Vote(response_id=name, label=True, user=voter, comment=f"{voter}'s comment"), f"{name}{voter}")
    return log


def erase(log: FeedbackLog, users: set[str], ids: set[str] = frozenset()) -> tuple[int, int, list[str]]:  # type: ignore[assignment]
    remembered: list[str] = []
    found = log_erasure.erase(log, lambda user: user in users, ids, remembered.extend)
    log_erasure.forget_deleted(log)
    return found.votes, found.completions, remembered


def test_the_ledger_names_each_once_and_must_be_readable(tmp_path: Path) -> None:
    remember_erasure(tmp_path, ["a", "b", "a"])
    remember_erasure(tmp_path, ["b", "c"])
    assert erased_names(tmp_path) == {"a", "b", "c"}
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 3
    (tmp_path / LEDGER).write_text('{"name": "a"}\n{"na')
    with pytest.raises(StorageError, match="Repair"):
        erased_names(tmp_path)


def test_a_person_leaves_the_log_with_all_votes_on_what_they_asked(log: FeedbackLog) -> None:
    before, _ = log.list_votes()
    votes, completions, remembered = erase(log, {"ann"})
    assert (votes, completions) == (3, 1)
    assert remembered == sorted(event.id for event in before if event.vote.response_id == "r1")
    after, _ = log.list_votes()
    assert [(event.seq, event.id) for event in after] == [(event.seq, event.id) for event in before]
    assert [event.vote.user for event in after] == ["erased:1", "erased:2", "erased:3", "bob"]
    assert [event.vote.label for event in after] == [None, None, None, True]
    assert [event.vote.comment for event in after] == [None, None, None, "bob's comment"]
    asked = log.get_completion("r1")
    assert (asked.messages, asked.prompt_ids, asked.user) == ([], [], "erased:r1")
    assert asked.choices == [Choice("", [], "stop")]
    assert log.get_completion("r2").messages
    assert erase(log, {"ann"}) == (0, 0, [])


def test_one_vote_leaves_the_log(log: FeedbackLog) -> None:
    first = log.list_votes()[0][0]
    assert erase(log, set(), {first.id, "unknown"}) == (1, 0, [])
    assert log.get_vote(first.id).vote.label is None
    assert log.get_completion("r1").messages


def test_nobody_votes_on_an_erased_answer(log: FeedbackLog) -> None:
    erase(log, {"ann"})
    with pytest.raises(NotFoundError, match="no such response"):
        log.add_vote(Vote(response_id="r1", label=True))
    log.add_vote(Vote(response_id="r2", label=True))


def test_no_byte_is_left_in_the_database(log: FeedbackLog, tmp_path: Path) -> None:
    dice = random.Random(6)
    for number in range(150):  # pages split, rows are moved between them and overflow
        text = f"{SECRET} " * dice.choice([1, 20, 300])
        messages = [{"role": "user", "content": text}]
        log.add_completion(
            Completion(f"x{number:03}", 1.0, "m/1", "fp", messages, [], [Choice(text, [], "stop")], {}, "ann")
        )
        log.add_vote(Vote(response_id=f"x{number:03}", label=True, user="ann", comment=f"{SECRET} {number}"))
    with sqlite3.connect(tmp_path / "bco.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert SECRET.encode() in (tmp_path / "bco.db").read_bytes()
    log_erasure.erase(log, lambda user: user == "ann", (), lambda ids: None)
    log_erasure.forget_deleted(log)
    connection.close()
    left = b"".join(path.read_bytes() for path in tmp_path.glob("bco.db*"))
    assert left.count(SECRET.encode()) == 2  # what nobody in particular asked, and the answer to it


@pytest.mark.parametrize(("lock", "message"), [("BEGIN", "write-ahead log"), ("BEGIN IMMEDIATE", "database is locked")])
def test_others_in_the_way_of_forgetting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str, message: str
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
    log = FeedbackLog.open(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "bco.db", isolation_level=None)) as other:
        other.execute(lock)
        other.execute("SELECT count(*) FROM votes").fetchone()
        with pytest.raises(StorageError, match=message):
            log_erasure.forget_deleted(log)
    log_erasure.forget_deleted(log)


def test_if_nothing_can_be_remembered_nothing_is_emptied(log: FeedbackLog) -> None:
    with pytest.raises(KilledError):
        log_erasure.erase(log, lambda user: user == "ann", (), dies)
    assert [event.vote.label for event in log.list_votes()[0]] == [True] * 4


def test_exports_go_on_after_an_erasure(log: FeedbackLog, tmp_path: Path) -> None:
    directory = tmp_path / "feedback"
    erase(log, {"ann"})
    manifest = export(log, directory)
    assert manifest is not None
    assert (manifest.watermark, manifest.rows) == (4, 1)
    latest = log.add_vote(Vote(response_id="r2", label=False, user="eve"))[0]
    erase(log, set(), {latest.id})
    manifest = export(log, directory)
    assert manifest is not None
    assert (manifest.watermark, manifest.rows) == (5, 1)


def test_segments_and_every_manifest_that_names_them(log: FeedbackLog, tmp_path: Path) -> None:
    directory = tmp_path / "feedback"
    export(log, directory)
    log.add_vote(Vote(response_id="r2", label=False, user="ann"))
    export(log, directory)
    (directory / ".part-1-4.parquet.0.tmp").write_bytes(b"torn")
    assert erase_segments(directory, named(hash_user("ann", user_salt(directory.parent)))) == 3
    assert erase_segments(directory, named(hash_user("ann", user_salt(directory.parent)))) == 0
    for number, rows in ((1, [2]), (2, [2, 0])):
        manifest = load_manifest(directory, number)
        verify_segments(directory, manifest)
        assert [segment.rows for segment in manifest.segments] == rows
        assert {schema_name(pq.read_schema(directory / s.file)) for s in manifest.segments} == {"records/2"}
    assert [path.name for path in directory.glob(".*")] == [".export.lock"]
    assert erase_segments(tmp_path / "nowhere", named("ann")) == 0


@pytest.mark.parametrize("step", ["write_rows", "write_json"])
def test_killed_among_the_segments(
    log: FeedbackLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    directory = tmp_path / "feedback"
    export(log, directory)
    with monkeypatch.context() as patch:
        patch.setattr(erasures if step == "write_rows" else files, step, dies)
        with pytest.raises(KilledError):
            erase_segments(directory, named(hash_user("ann", user_salt(directory.parent))))
    assert Amendment(directory).pending
    erase_segments(directory, named(hash_user("ann", user_salt(directory.parent))))
    verify_segments(directory, load_manifest(directory))
    assert (load_manifest(directory).rows, Amendment(directory).pending) == (2, False)


def test_damage_stays_visible(log: FeedbackLog, tmp_path: Path) -> None:
    directory = tmp_path / "feedback"
    manifest = export(log, directory)
    assert manifest is not None
    path = directory / manifest.segments[0].file
    pq.write_table(pq.read_table(path).slice(1), path)
    assert erase_segments(directory, named("nobody")) == 0
    with pytest.raises(StorageError, match="sha256"):
        verify_segments(directory, load_manifest(directory))


def write_records(directory: Path) -> None:
    """Two parts of one bucket, one of another; u1 has 3 of 5 votes."""
    users = {"a.parquet": ["u1", "u2"], "b.parquet": ["u1"], "c.parquet": ["u1", None]}
    parts = []
    for bucket, (name, voters) in enumerate(users.items()):
        rows = [{"file": "f", "position": n, "entry": 0, "prompt_hash": 1, "id": f"{name}{n}", "prompt": "[]",
                 "completion": "[]", "label": n == 0, "user": user} for n, user in enumerate(voters)]  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SETTLED), directory / name)
        parts.append(PartFacts(file=name, bucket=bucket // 2, chosen=1, rejected=len(rows) - 1))
    refused = [{"file": "f", "position": 9, "reason": r, "detail": "d", "raw": raw}
               for r, raw in (("empty", b"ann said"), ("empty", b"bob said"), ("erased", b"{}"))]  # fmt: skip
    Quarantine(directory / "quarantine" / "settle").write(("settle", 0), 8, refused, {"responses": 4})
    commit_records(
        directory,
        RecordsManifest(inputs={}, read=8, kept=5, drops={"empty": 2, "erased": 1}, bits=1, parts=parts),
    )


def statistics(buckets: Any) -> dict[str, Any]:
    return {"rows": [table.num_rows for table in buckets]}


def check_records(directory: Path) -> None:
    files.verify_directory(directory)
    manifest = load_records(directory)
    assert (manifest.read, manifest.kept, manifest.drops) == (8, 2, {"empty": 2, "erased": 4})
    assert [(part.chosen, part.rejected) for part in manifest.parts] == [(0, 1), (0, 0), (0, 1)]
    assert manifest.statistics == {"rows": [1, 1]}
    assert pq.read_schema(directory / "b.parquet").metadata == SETTLED.metadata


def test_records_stay_balanced(tmp_path: Path) -> None:
    write_records(tmp_path)
    assert erase_records(tmp_path, named("u1"), by_ann, statistics) == 3
    check_records(tmp_path)
    assert erase_records(tmp_path, named("u1"), by_ann, statistics) == 0
    check_records(tmp_path)


def test_records_of_others_are_not_touched(tmp_path: Path) -> None:
    write_records(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert erase_records(tmp_path, named("u9"), lambda text: False, statistics) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("calls", range(6))
def test_killed_among_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """After each number of files written, the last of which is the manifest."""
    write_records(tmp_path)
    write, left = files.write_bytes, calls

    def sometimes(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        write(path, data) if left >= 0 else dies()

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", sometimes)
        with pytest.raises(KilledError):
            erase_records(tmp_path, named("u1"), by_ann, statistics)
    erase_records(tmp_path, named("u1"), by_ann, statistics)
    check_records(tmp_path)


def test_refused_rows_are_emptied_and_still_count(tmp_path: Path) -> None:
    write_records(tmp_path)
    books = Quarantine(tmp_path / "quarantine" / "settle")
    before, begun = books.tally(), []
    assert blank_mentions(tmp_path, by_ann, lambda: begun.append(1)) == 1
    assert (books.tally(), begun) == (before, [1])
    assert [(row["raw"], row["detail"]) for row in books.examples(9)] == [
        (b"", "erased"), (b"bob said", "d"), (b"{}", "d")
    ]  # fmt: skip
    assert blank_mentions(tmp_path, by_ann, dies) == 0
