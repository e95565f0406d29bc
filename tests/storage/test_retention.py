"""What is forgotten with age, and what waits for an export first."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bco_ray.storage.export import export
from bco_ray.storage.feedback_log import Choice, Completion, ExpiredError, FeedbackLog, Vote
from bco_ray.storage.retention import forget_older

SECRET = "rhubarb"


@pytest.fixture
def log(tmp_path: Path) -> FeedbackLog:
    log = FeedbackLog.open(tmp_path)
    for name, when in (("old", 100.0), ("voted", 100.0), ("new", 900.0)):
        messages = [{"role": "user", "content": SECRET}]
        log.add_completion(
            Completion(
                name, when, "m/1", "fp", messages, [5, 6], [Choice(SECRET, [7], "stop")], {"stop": [SECRET]}, "ann"
            )
        )
    log.add_vote(Vote(response_id="voted", label=True))
    return log


def test_old_answers_are_emptied_once_no_export_needs_them(log: FeedbackLog) -> None:
    assert forget_older(log, 500.0) == 1
    emptied = log.get_completion("old")
    assert (emptied.messages, emptied.prompt_ids, emptied.choices) == ([], [], [Choice("", [], "stop")])
    assert (emptied.tokens, emptied.user) == ((2, 1), "ann")
    assert log.get_completion("voted").messages
    export(log, log.storage / "feedback")
    assert (forget_older(log, 500.0), forget_older(log, 500.0)) == (1, 0)
    assert not log.get_completion("voted").messages
    assert log.get_completion("new").messages


def test_nobody_votes_on_what_was_forgotten(log: FeedbackLog) -> None:
    forget_older(log, 500.0)
    with pytest.raises(ExpiredError):
        log.add_vote(Vote(response_id="old", label=True))
    (outcome,) = log.add_all((), [(Vote(response_id="new", label=True), None)], oldest=950.0)
    assert isinstance(outcome, ExpiredError)


def test_what_was_exported_stays_exported(log: FeedbackLog) -> None:
    directory = log.storage / "feedback"
    first = export(log, directory)
    forget_older(log, 500.0)
    log.add_vote(Vote(response_id="new", label=True))
    manifest = export(log, directory)
    assert manifest is not None
    assert first is not None
    assert manifest.segments[:1] == first.segments
    assert SECRET in pq.read_table(directory / first.segments[0].file)["prompt"].to_pylist()[0]
    assert (manifest.rows, manifest.left_out) == (2, {})


def test_votes_on_what_is_not_stored_or_half_an_answer_are_counted_out(log: FeedbackLog) -> None:
    half = [Choice("all", [1], "stop"), Choice("ha", [1], "abort")]
    answer = Completion("half", 900.0, "m/1", "fp", [{"role": "user", "content": "x"}], [1], half, {})
    secret = Completion("unstored", 900.0, "m/1", "fp", [{"role": "user", "content": SECRET}], [1], half[:1], {})
    log.add_all([answer, secret.emptied("not_stored")], ())
    for response, choice in (("half", 0), ("half", 1), ("unstored", 0), ("unstored", 0)):
        log.add_vote(Vote(response_id=response, choice_index=choice, label=True))
    manifest = export(log, log.storage / "feedback")
    assert manifest is not None
    assert (manifest.watermark, manifest.rows, manifest.left_out) == (4, 2, {"aborted": 1, "not_stored": 1})
