"""From records to tokens: what is rated, what is refused, on which side of the split, under which content keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bco_ray.schema import Message, Record
from bco_ray.scoring.tokens import KEYED, Tokenizing, prompt_key, row_key, split_of, text_key, user_text
from bco_ray.testing.records import prompt_hash, settled
from bco_ray.text import load_tokenizer

Make = Callable[..., Record]


def tokenizing(model: Path, *, with_text: bool = False) -> Tokenizing:
    return Tokenizing(str(model), max_length=60, validation=0.5, with_text=with_text)


def rated(model: Path, row: dict[str, Any]) -> str:
    ids = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    return str(load_tokenizer(model).decode(ids))


def test_rows_keep_their_place_and_refused_ones_say_why(model: Path, record: Make) -> None:
    raw = record(metadata={"endpoint": "text", "choice_index": 0})
    rows, refused = tokenizing(model)(settled([record(user="u-1"), record("long " * 50), raw, record(label=False)]))
    assert rows.schema == KEYED
    assert [(row["file"], row["position"], row["entry"]) for row in rows.to_pylist()] == [("log", 0, 0), ("log", 3, 0)]
    assert rows["user"].to_pylist() == ["u-1", None]
    assert rows["label"].to_pylist() == [True, False]
    assert [(row["position"], row["reason"]) for row in refused] == [(1, "too_long"), (2, "raw_prompt")]
    assert Record.model_validate_json(refused[1]["raw"]) == raw


def test_no_rows_make_no_tokens(model: Path) -> None:
    rows, refused = tokenizing(model)(settled([]))
    assert (rows.num_rows, rows.schema, refused) == (0, KEYED, [])


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [({}, True), ({"finish_reason": "stop"}, True), ({"finish_reason": "length"}, False),
     ({"finish_reason": "stop", "ended": False}, False), ({"finish_reason": "stop", "ended": True}, True)],
)  # fmt: skip
def test_only_an_answer_that_ended_itself_teaches_to_end(
    model: Path, record: Make, metadata: dict[str, Any], ends: bool
) -> None:
    (row,) = tokenizing(model)(settled([record(metadata=metadata)]))[0].to_pylist()
    assert rated(model, row) == "Hello there." + "<|im_end|>" * ends


def test_sides_have_their_share(record: Make) -> None:
    sides = [split_of(prompt_hash(record(f"q{n}")), 0.3) for n in range(2000)]
    assert 0.26 < sides.count("validation") / 2000 < 0.34
    assert {split_of(prompt_hash(record(f"q{n}")), 0.0) for n in range(50)} == {"train"}


def test_keys_are_equal_exactly_for_equal_content(model: Path, record: Make) -> None:
    votes = [record(id="a", user="x"), record(id="b", label=False), record(answer="Other."), record("Ho")]
    rows = tokenizing(model)(settled(votes))[0].to_pylist()
    assert [row["row_key"] for row in rows].index(rows[1]["row_key"]) == 0
    assert len({row["row_key"] for row in rows}) == 3
    assert len({row["prompt_key"] for row in rows[:3]}) == 1 != len({row["prompt_key"] for row in rows})
    ids_T, mask_T = np.array([1, 2, 3], np.int32), np.array([False, False, True])
    assert row_key(ids_T, mask_T) != row_key(ids_T, np.array([False, True, True]))
    assert prompt_key(ids_T, mask_T) == prompt_key(np.array([1, 2, 9], np.int32), mask_T)


def test_an_embedding_model_reads_what_the_user_wrote(model: Path, record: Make) -> None:
    rows, _ = tokenizing(model, with_text=True)(settled([record("Question?")]))
    assert rows["text"].to_pylist() == ["Question?"]
    assert rows["prompt_key"].to_pylist() == [text_key("Question?")]
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert user_text([Message(role=role, content=text) for role, text in turns]) == "a\nc"
    assert user_text([Message(role="system", content="only this")]) == "only this"
