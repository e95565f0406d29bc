"""The log's promises: durable before acknowledged, idempotent, last event counts, many writers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from bco_ray.errors import ConflictError, StorageError
from bco_ray.storage import casting
from bco_ray.storage.database import the_only_writer
from bco_ray.storage.feedback_log import (
    Choice,
    Completion,
    FeedbackLog,
    NotFoundError,
    Vote,
    new_completion_id,
)


def completion(completion_id: str = "chatcmpl-1", choices: int = 1) -> Completion:
    return Completion(
        id=completion_id,
        created_at=1000.5,
        model="helper/3",
        system_fingerprint="fp",
        messages=[{"role": "user", "content": "hi"}],
        prompt_ids=[1, 2, 3],
        choices=[Choice(f"answer {i}", [4, 5], "stop") for i in range(choices)],
        sampling={"temperature": 0.5},
        user="ann",
    )


@pytest.fixture
def log(tmp_path: Path) -> FeedbackLog:
    log = FeedbackLog.open(tmp_path)
    log.add_completion(completion())
    return log


def test_completion_comes_back_as_it_was(log: FeedbackLog) -> None:
    assert log.get_completion("chatcmpl-1") == completion()


def test_unknown_completion_is_not_found(log: FeedbackLog) -> None:
    with pytest.raises(NotFoundError, match="chatcmpl-9"):
        log.get_completion("chatcmpl-9")


def test_completion_ids_are_unguessable() -> None:
    assert len({new_completion_id() for _ in range(100)}) == 100
    assert len(new_completion_id().removeprefix("chatcmpl-")) >= 32


def test_vote_comes_back_with_the_version_it_is_about(log: FeedbackLog) -> None:
    vote = Vote(response_id="chatcmpl-1", label=False, comment="no ☹", tags=["rude"], metadata={"page": 3})
    event, created = log.add_vote(vote)
    assert created
    assert event.id.startswith("fb-")
    assert (event.vote, event.model, event.effective) == (vote, "helper/3", True)
    assert log.get_vote(event.id) == event


def test_same_key_same_body_is_a_replay(log: FeedbackLog) -> None:
    vote = Vote(response_id="chatcmpl-1", label=True)
    first, created = log.add_vote(vote, "key-1")
    again, created_again = log.add_vote(vote, "key-1")
    assert (created, created_again) == (True, False)
    assert again == first
    assert log.list_votes()[0] == [first]


def test_same_key_other_body_is_a_conflict(log: FeedbackLog) -> None:
    log.add_vote(Vote(response_id="chatcmpl-1", label=True), "key-1")
    with pytest.raises(ConflictError, match="key-1"):
        log.add_vote(Vote(response_id="chatcmpl-1", label=False), "key-1")


@pytest.mark.parametrize(
    "vote", [Vote(response_id="no", label=True), Vote(response_id="chatcmpl-1", choice_index=1, label=True)]
)
def test_vote_on_what_was_never_answered_is_refused(log: FeedbackLog, vote: Vote) -> None:
    with pytest.raises(NotFoundError):
        log.add_vote(vote)
    assert log.list_votes() == ([], False)


def test_last_event_of_a_voter_counts(log: FeedbackLog) -> None:
    up, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=True, user="ann"))
    other, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=True, user="bob"))
    down, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=False, user="ann"))
    assert [log.get_vote(v.id).effective for v in (up, other, down)] == [False, True, True]


def test_delete_appends_a_tombstone(log: FeedbackLog) -> None:
    vote, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=True, user="ann"))
    gone = log.delete_vote(vote.id)
    assert gone is not None
    assert (gone.vote.label, gone.effective, log.get_vote(vote.id).effective) == (None, True, False)
    events, _ = log.list_votes()
    assert [e.vote.label for e in events] == [True, None]
    assert log.delete_vote(vote.id) is None
    assert len(log.list_votes()[0]) == 2, "deleting twice changes nothing"


def test_deleting_an_overridden_vote_leaves_the_newer_one(log: FeedbackLog) -> None:
    old, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=True))
    new, _ = log.add_vote(Vote(response_id="chatcmpl-1", label=False))
    log.delete_vote(old.id)
    assert log.get_vote(new.id).effective


def test_listing_pages_in_order(log: FeedbackLog) -> None:
    log.add_completion(completion("chatcmpl-2"))
    ids = [log.add_vote(Vote(response_id=f"chatcmpl-{1 + i % 2}", label=True, user=str(i)))[0].id for i in range(5)]
    page, more = log.list_votes(limit=2)
    assert ([v.id for v in page], more) == (ids[:2], True)
    page, more = log.list_votes(after=ids[2], limit=2)
    assert ([v.id for v in page], more) == (ids[3:], False)
    page, _ = log.list_votes(response_id="chatcmpl-2")
    assert [v.id for v in page] == [ids[1], ids[3]]
    with pytest.raises(NotFoundError, match="after"):
        log.list_votes(after="fb-no")


def test_batch_answers_per_vote(log: FeedbackLog) -> None:
    good = Vote(response_id="chatcmpl-1", label=True)
    results = log.add_votes([(good, "a"), (Vote(response_id="no", label=True), "b"), (good, "a")])
    assert isinstance(results[0], tuple)
    assert isinstance(results[1], NotFoundError)
    assert isinstance(results[2], tuple)
    assert results[2] == (results[0][0], False)


@pytest.mark.parametrize(
    "fields",
    [
        {"label": "yes"},
        {"label": 1},
        {"response_id": ""},
        {"lable": True},
        {"choice_index": -1},
        {"metadata": {"x": float("nan")}},
        {"comment": "\ud800"},
        {"metadata": {"x": "\ud800"}},
        {"metadata": {"\ud800": "x"}},
        {"tags": ["\ud800"]},
        {"comment": "a\0"},
        {"metadata": {"\0": 1}},
        {"user": "\\\0"},
        {"metadata": {str(i): "" for i in range(17)}},
    ],
)
def test_malformed_votes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Vote.model_validate({"response_id": "chatcmpl-1", "label": True, **fields})


def test_text_that_only_looks_unstorable_is_stored(log: FeedbackLog) -> None:
    for comment in ("\\u0000", "\\\\u0000", "u0000"):
        log.add_vote(Vote(response_id="chatcmpl-1", label=True, comment=comment))
    assert [event.vote.comment for event in log.list_votes()[0]] == ["\\u0000", "\\\\u0000", "u0000"]


def test_a_voter_is_looked_up_once_however_often_they_voted(log: FeedbackLog) -> None:
    """By the index, and only for the last vote."""
    votes = [(Vote(response_id="chatcmpl-1", label=i % 2 == 0, user=user), None) for i in range(50) for user in "ab"]
    assert all(isinstance(outcome, tuple) and outcome[1] for outcome in log.add_votes(votes))
    listed = json.dumps([("chatcmpl-1", 0, user) for user in "ab"])
    plan = str(casting._STANDING.params(listed=listed).compile(log.engine, compile_kwargs={"literal_binds": True}))
    with log.engine.connect() as connection:
        last = [row[3] for row in connection.execute(casting._STANDING, {"listed": listed})]
        steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {plan}")]
    assert last == [event.id for event in log.list_votes(limit=200)[0][-2:]]
    assert any("votes_by_voter" in step for step in steps)
    assert not [step for step in steps if "SCAN" in step and "listed" not in step]
    (replayed,) = log.add_votes([votes[-1]])
    assert isinstance(replayed, tuple)
    assert not replayed[1]


def test_other_databases_are_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the feedback log lives in SQLite"):
        FeedbackLog.open(tmp_path, "postgresql://secret@host/db")


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "bco.db").write_text("something else entirely, long enough to be read as a header" * 100)
    with pytest.raises(StorageError, match=r"bco\.db"):
        FeedbackLog.open(tmp_path)


def test_threads_with_one_key_store_one_vote(log: FeedbackLog) -> None:
    vote, results = Vote(response_id="chatcmpl-1", label=True), []
    threads = [threading.Thread(target=lambda: results.append(log.add_vote(vote, "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(created for _, created in results) == [False] * 7 + [True]
    assert len({event.id for event, _ in results}) == 1


def test_writers_wait_for_each_other_and_readers_for_nobody(log: FeedbackLog) -> None:
    done = threading.Event()
    writer = threading.Thread(target=lambda: (log.add_vote(Vote(response_id="chatcmpl-1", label=True)), done.set()))
    with the_only_writer(log.engine.url):
        writer.start()
        assert not done.wait(0.2)
        assert log.list_votes() == ([], False)
    writer.join(timeout=60)
    assert done.is_set()


def test_one_open_log_in_two_processes(tmp_path: Path) -> None:
    """Both create the database at the same moment and write to it."""
    code = (
        "import sys; from pathlib import Path; from bco_ray.storage.feedback_log import *\n"
        "log = FeedbackLog.open(Path(sys.argv[1]))\n"
        "log.add_completion(Completion(sys.argv[2], 0.0, 'm/1', 'fp', [{'role': 'user', 'content': ''}], [], "
        "[Choice('', [], 'stop')], {}))\n"
        "for i in range(20): log.add_vote(Vote(response_id=sys.argv[2], label=True, user=str(i)))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("a", "b")]
    try:
        assert [w.wait(timeout=120) for w in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
    assert len(FeedbackLog.open(tmp_path).list_votes()[0]) == 40


_WRITER = """
import sys
from pathlib import Path
from bco_ray.storage.feedback_log import FeedbackLog, Vote
log = FeedbackLog.open(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), 100_000):
    log.add_vote(Vote(response_id="chatcmpl-1", label=i % 2 == 0, user=str(i)), f"key-{i}")
    print(i, flush=True)
"""


def test_no_acknowledged_vote_is_lost_to_kill_9(tmp_path: Path, log: FeedbackLog) -> None:
    acknowledged: list[int] = []
    for kill in range(3):
        start = acknowledged[-1] + 1 if acknowledged else 0
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(start)], stdout=subprocess.PIPE, bufsize=0
        )  # unbuffered: communicate() would not see what readline() had read ahead
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        time.sleep(0.1 * (kill + 1))
        writer.kill()
        rest, _ = writer.communicate(timeout=60)
        acknowledged += [int(line) for line in b"".join([*lines, rest]).splitlines()]
    stored = [e.vote.user for e in log.list_votes(limit=100_000)[0]]
    assert acknowledged == list(range(len(acknowledged)))
    assert len(stored) == len(set(stored)), "a re-sent key is stored once"
    assert set(map(str, acknowledged)) <= set(stored)
