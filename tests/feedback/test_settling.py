"""Which votes count: the last of a person on an answer, no copies, nothing neutral, and every one accounted for."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.feedback import identity
from bco_ray.feedback.blocks import vote_row
from bco_ray.feedback.settling import Rules, settle
from bco_ray.schema import Message, Record, record_to_row
from bco_ray.storage.salt import hash_user

ORDER = {"a.jsonl": 0, "b.jsonl": 1}


def vote(position: int = 0, *, file: str = "a.jsonl", answer: str = "Yes.", **fields: Any) -> dict[str, Any]:
    """A parsed row; without an `id` it has the one its place gives it."""
    values = {
        "id": identity.default_id(file, position, 0),
        "prompt": [Message(role="user", content="Well?")],
        "completion": [Message(role="assistant", content=answer)],
        "label": True,
        **fields,
    }
    return {"file": file, "position": position, "entry": 0, **vote_row(record_to_row(Record(**values)), bits=3)}


def outcome(votes: list[dict[str, Any]], rules: Rules | None = None) -> tuple[list[int], dict[str, int]]:
    """(positions that count, reasons of the others)."""
    kept, dropped = settle(votes, rules or Rules(), ORDER)
    assert len(kept) + len(dropped) == len(votes)
    return sorted(row["position"] for row in kept), dict(Counter(verdict.reason for _, verdict in dropped))


def test_the_last_vote_of_a_user_on_an_answer_counts_by_time_not_by_place() -> None:
    votes = [vote(0, user="u", response_id="r", updated_at=20.0), vote(1, user="u", response_id="r", created_at=10.0),
             vote(2, user="v", response_id="r", updated_at=1.0)]  # fmt: skip
    assert outcome(votes) == ([0, 2], {"superseded": 1})
    votes = [vote(n, id=f"v{n}", user="u", label=bool(n)) for n in range(2)]
    assert outcome(votes) == ([0, 1], {}), "votes with ids of their own are two votes, also on the same words"


def test_without_times_the_order_of_the_log_decides() -> None:
    votes = [vote(7, file="b.jsonl", user="u", label=False), vote(9, user="u")]
    assert outcome(votes) == ([7], {"superseded": 1})


def test_an_answer_is_known_by_its_id_or_by_its_text_in_its_conversation() -> None:
    same_text = [vote(n, user="u", response_id=f"r{n}") for n in range(3)]
    assert outcome(same_text) == ([0, 1, 2], {})
    without_id = [vote(0, user="u"), vote(1, user="u", label=False), vote(2, user="u", conversation_id="other")]
    assert outcome(without_id) == ([1, 2], {"superseded": 1})


def test_ids_that_repeat_on_other_prompts_are_other_votes() -> None:
    """Row numbers of several files do; and whether two prompts meet in a bucket must not matter."""
    other = [Message(role="user", content="And now?")]
    for fields in ({"id": "7"}, {"response_id": "7"}, {"response_id": "7", "user": "u"}):
        assert outcome([vote(0, **fields), vote(1, prompt=other, **fields)]) == ([0, 1], {})


def test_scores_of_two_names_are_no_change_of_mind() -> None:
    said = [vote(n, response_id="r", user="u", metadata={"score": name}) for n, name in enumerate(["thumb", "toxic"])]
    assert outcome(said) == ([], {"several_scores": 2})
    assert outcome([*said[:1], vote(2, response_id="r", user="u", metadata={"score": "thumb"}, label=False)]) == (
        [2], {"superseded": 1},
    )  # fmt: skip


def test_copies_of_a_vote_are_told_from_changes_of_mind() -> None:
    votes = [vote(0, user="u", created_at=5.0), vote(0, file="b.jsonl", user="u", created_at=5.0)]
    assert outcome(votes) == ([0], {"duplicate": 1})


def test_a_neutral_vote_replaces_and_then_goes() -> None:
    votes = [vote(0, user="u", response_id="r"), vote(1, user="u", response_id="r", label=None)]
    assert outcome(votes) == ([], {"superseded": 1, "neutral": 1})
    assert outcome(votes[::-1]) == ([], {"superseded": 1, "neutral": 1})


def test_votes_that_name_nobody() -> None:
    equal = [vote(n) for n in range(3)]
    assert outcome(equal) == ([2], {"duplicate": 2})
    assert outcome(equal, Rules(duplicates="keep")) == ([0, 1, 2], {})
    assert outcome([vote(0, id="x"), vote(1, id="y"), vote(2, id="x")]) == ([1, 2], {"duplicate": 1})
    assert outcome([vote(0, response_id="r"), vote(1, response_id="r", label=False)]) == ([1], {"superseded": 1})
    assert outcome([vote(0, created_at=1.0), vote(1, created_at=2.0)]) == ([0, 1], {})


def test_votes_of_different_people_are_kept_or_the_majority_decides() -> None:
    labels = [True, True, False]
    votes = [vote(n, user=f"u{n}", response_id="r", label=label) for n, label in enumerate(labels)]
    votes += [vote(10 + n, user=f"u{n}", response_id="s", label=bool(n)) for n in range(2)]
    assert outcome(votes) == ([0, 1, 2, 10, 11], {})
    assert outcome(votes, Rules(conflicts="majority")) == ([0, 1], {"outvoted": 1, "tied": 2})


def test_erased_people_and_votes_leave_no_text_behind() -> None:
    gone = hash_user("ann", b"0" * 16)
    votes = [vote(0, user=gone, comment="secret"), vote(1, id="fb-1"), vote(2, id="fb-2")]
    kept, dropped = settle(votes, Rules(erased=frozenset({gone, "fb-1"})), ORDER)
    assert [row["id"] for row in kept] == ["fb-2"]
    assert [verdict.reason for _, verdict in dropped] == ["erased", "erased"]
    assert all(set(row) == {"file", "position", "entry", "id"} for row, _ in dropped)


def test_to_erase_the_last_vote_does_not_bring_back_the_one_before() -> None:
    votes = [vote(0, id="v1", response_id="r", user="u"), vote(1, id="v2", response_id="r", user="u", label=False)]
    assert outcome(votes, Rules(erased=frozenset({"v2"}))) == ([], {"superseded": 1, "erased": 1})


def test_pseudonyms_are_stable_and_not_hashed_twice() -> None:
    salt = b"s" * 32
    name = hash_user("ann", salt)
    assert name == hash_user("ann", salt) == hash_user(name, b"other salt")
    assert name != hash_user("ann", b"other salt")
    assert name != hash_user("bob", salt)


@pytest.mark.parametrize("bits", [1, 3, 10])
def test_a_bucket_splits_in_two_when_there_are_more(bits: int) -> None:
    for value in (-(2**63), -1, 0, 1, 2**63 - 1, 123456789):
        assert identity.bucket_of(value, bits + 1) // 2 == identity.bucket_of(value, bits) < 2**bits


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["u", "v", None]), st.sampled_from(["r", "s", None]),
                  st.sampled_from([True, False, None]), st.sampled_from([None, 1.0, 2.0])),
        max_size=12,
    )
)  # fmt: skip
def test_the_order_in_which_rows_arrive_changes_nothing(spec: list[tuple[Any, ...]]) -> None:
    votes = [
        vote(n, user=user, response_id=answer, label=label, updated_at=time)
        for n, (user, answer, label, time) in enumerate(spec)
    ]
    expected = outcome(votes)
    random.Random(0).shuffle(votes)
    assert outcome(votes) == expected
