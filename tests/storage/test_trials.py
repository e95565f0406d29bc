"""A canary is a trial: whose thumbs count since when, and what the policy makes of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config.gate import CanaryPolicy
from bco_ray.storage import aliases
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.registry import Registry
from bco_ray.storage.sequential import Thumbs
from bco_ray.storage.thumbs import SIDE_BY_SIDE, VersionVotes, thumbs_since, votes_by_version
from bco_ray.storage.trials import Trial, Trials

NUMBERS = count()


def vote(
    log: FeedbackLog, model: str, label: bool | None, user: str | None = None, at: float = 5000.0, tags: Any = (),
    percent: float | None = 10,
) -> str:  # fmt: skip
    """On a new answer to `user`, whose id is returned."""
    answer = Completion(
        id=f"chatcmpl-{next(NUMBERS)}", created_at=at, model=model, system_fingerprint="fp", messages=[],
        prompt_ids=[], choices=[Choice(text, [4], "stop") for text in "ab"], sampling={}, user=user,
        canary_percent=percent,
    )  # fmt: skip
    log.add_completion(answer)
    log.add_vote(Vote(response_id=answer.id, label=label, user=user, tags=list(tags)))
    return answer.id


@pytest.fixture
def log(tmp_path: Path) -> FeedbackLog:
    return FeedbackLog.open(tmp_path)


def test_each_person_counts_once_per_version_and_the_nameless_each_time(log: FeedbackLog) -> None:
    for label in (True, False, False):
        vote(log, "bot/1", label, "ann")  # the first one counts
    vote(log, "bot/2", False, "ann")
    for label in (True, True, False):
        vote(log, "bot/2", label)
    changed = vote(log, "bot/1", True, "ben")
    log.add_vote(Vote(response_id=changed, label=False, user="ben"))  # as it stands now
    withdrawn = vote(log, "bot/1", True, "eve")
    log.add_vote(Vote(response_id=withdrawn, label=None, user="eve"))
    vote(log, "bot/1", True, "old", at=10.0)
    vote(log, "bot/3", True)
    assert thumbs_since(log.engine, ("bot/1", "bot/2"), 1000.0, 10) == {"bot/1": Thumbs(1, 1), "bot/2": Thumbs(2, 2)}
    assert thumbs_since(log.engine, ("bot/9",), 1000.0, 10) == {"bot/9": Thumbs()}


def test_who_votes_under_many_names_counts_once(log: FeedbackLog) -> None:
    """The names are the voter's own words, and a token that came with the answer is enough to vote."""
    mine, anybodys = vote(log, "bot/2", True, "ann"), vote(log, "bot/2", False)
    for answer in (mine, anybodys):
        for number in range(60):
            log.add_vote(Vote(response_id=answer, label=True, user=f"friend-{number}", choice_index=number % 2))
    vote(log, "bot/2", False, "ann")
    assert thumbs_since(log.engine, ("bot/2",), 1000.0, 10) == {"bot/2": Thumbs(1, 1)}


def test_only_answers_that_this_share_decided_count(log: FeedbackLog) -> None:
    """Not those of a version that was asked for by its name, nor those of which nobody knows."""
    for percent in (None, 5, 20):
        vote(log, "bot/2", True, percent=percent)
    vote(log, "bot/2", False, percent=10.0)
    assert thumbs_since(log.engine, ("bot/2",), 1000.0, 10) == {"bot/2": Thumbs(0, 1)}


def test_who_compared_two_answers_side_by_side_counts_on_neither(log: FeedbackLog) -> None:
    vote(log, "bot/1", False, "ann", tags=["x", SIDE_BY_SIDE])
    vote(log, "bot/1", True, "ann", tags=["x"])
    assert thumbs_since(log.engine, ("bot/1",), 1000.0, 10) == {"bot/1": Thumbs(1, 0)}


def test_votes_from_before_it_began_are_not_even_read(log: FeedbackLog) -> None:
    vote(log, "bot/1", True, at=9e9)  # its vote is of now
    assert thumbs_since(log.engine, ("bot/1",), 8e9, 10) == {"bot/1": Thumbs()}


def test_all_votes_are_counted_and_people_once_and_without_what_they_only_compared(log: FeedbackLog) -> None:
    for label in (True, False, False):
        vote(log, "bot/1", label, "ann")
    for label in (True, False):
        vote(log, "bot/1", label)
    vote(log, "bot/1", False, "ben", tags=["x", SIDE_BY_SIDE])  # comes first, and is none of his thumbs
    vote(log, "bot/1", True, "ben", tags=["side-by-side-by-side"])
    vote(log, "bot/2", True, "ann", tags=[SIDE_BY_SIDE])
    vote(log, "bot/2", None, "ann")
    assert votes_by_version(log.engine) == [
        VersionVotes("bot/1", up=3, down=4, side_by_side=1, people=Thumbs(3, 1)),
        VersionVotes("bot/2", up=1, down=0, side_by_side=1, people=Thumbs()),
    ]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "m").mkdir()
    found = Registry(tmp_path)
    for run in "abc":
        found.register(
            "bot", tmp_path / "m", {"run": run, "gate": {"canary": {"min_votes": 5}} if run == "b" else None}
        )
    return found


def test_a_trial_needs_a_canary_and_a_prod_that_is_another(log: FeedbackLog, registry: Registry) -> None:
    trials = Trials(registry, log.engine)
    registry.promote("bot", 2, "candidate")
    registry.set_canary("bot", 10)
    assert trials.of("bot") is None
    registry.promote("bot", 1)
    trial = trials.of("bot")
    assert trial is not None
    assert (trial.candidate, trial.prod, trial.policy) == (2, 1, CanaryPolicy(min_votes=5))
    registry.promote("bot", 3, "candidate")
    found = trials.of("bot")
    assert found is not None
    assert (found.candidate, found.policy) == (3, None)
    registry.set_canary("bot", 0)
    assert trials.of("bot") is None


def test_it_began_when_versions_and_share_were_what_they_are(
    log: FeedbackLog, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: dict[str, int] = {}
    for moment, (name, step) in enumerate([
        ("prod", lambda: registry.promote("bot", 1)), ("candidate", lambda: registry.promote("bot", 2, "candidate")),
        ("began", lambda: registry.set_canary("bot", 5)), ("grown", lambda: registry.set_canary("bot", 50)),
        ("else", lambda: registry.promote("bot", 3, "spare")),
    ]):  # fmt: skip
        at[name] = 1000 + moment
        monkeypatch.setattr(aliases, "time", lambda: float(at[name]))  # noqa: B023
        step()
    trials = Trials(registry, log.engine)
    assert trials.of("bot").since == at["grown"]  # type: ignore[union-attr]
    monkeypatch.setattr(aliases, "time", lambda: 2000.0)
    registry.promote("bot", 3, "candidate")
    assert trials.of("bot").since == 2000  # type: ignore[union-attr]


def test_votes_under_another_share_do_not_make_a_winner(
    log: FeedbackLog, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two equal versions. While few ask the candidate all are content, later nobody is: added up it loses."""
    registry.promote("bot", 1)
    registry.promote("bot", 2, "candidate")
    for at, percent, label in ((1000.0, 10, True), (2000.0, 90, False)):
        monkeypatch.setattr(aliases, "time", lambda: at)  # noqa: B023
        registry.set_canary("bot", percent)
        for number in range(200):
            vote(log, f"bot/{2 if number < 2 * percent else 1}", label, at=at + 1, percent=percent)
    found = Trials(registry, log.engine).of("bot")
    assert found is not None
    assert (found.on_candidate, found.on_prod) == (Thumbs(0, 180), Thumbs(0, 20))
    assert found.verdict(2100.0)[0] == "wait"


def trial(on_candidate: Thumbs, on_prod: Thumbs, **policy: Any) -> Trial:
    return Trial("bot", 2, 1, 1000.0, 3, on_candidate, on_prod, CanaryPolicy(**policy))


GOOD, BAD = Thumbs(190, 10), Thumbs(20, 180)


@pytest.mark.parametrize(
    ("found", "days", "verdict", "why"),
    [
        (trial(GOOD, BAD), 1, "promote", "after 200 and 200 votes, above 0"),
        (trial(BAD, GOOD), 1, "end", "below 0"),
        (trial(GOOD, GOOD), 1, "wait", "after 200"),
        (trial(GOOD, GOOD), 15, "end", "undecided after 14 days"),
        (trial(GOOD, GOOD, max_days=None), 99, "wait", ""),
        (trial(GOOD, GOOD, promote_at=-0.2, rollback_at=-0.2), 1, "promote", "above -0.2"),
        (trial(GOOD, BAD, min_votes=300), 1, "wait", ""),
        (trial(GOOD, BAD, promote_at=None), 1, "wait", ""),
        (trial(BAD, GOOD, rollback_at=None), 1, "wait", ""),
        (replace(trial(GOOD, BAD), policy=None), 99, "wait", "no policy"),
    ],
)
def test_the_verdict(found: Trial, days: float, verdict: str, why: str) -> None:
    said, because = found.verdict(1000 + days * 86400)
    assert said == verdict
    assert why in because


def test_as_it_is_shown() -> None:
    shown = trial(Thumbs(3, 1), Thumbs()).as_json()
    assert shown["candidate"] == {"model": "bot/2", "ups": 3, "downs": 1, "up_rate": 0.75}
    assert shown["prod"]["up_rate"] is None
    assert (shown["difference"], shown["since"], shown["automatic"]) == ({"low": -1.0, "high": 1.0}, 1000, True)
    assert (shown["confidence"], trial(GOOD, BAD, confidence=0.9).as_json()["confidence"]) == (0.95, 0.9)
