"""UltraFeedback: one vote per answer by its helpfulness; and the binarized copies, which are plain pairs."""

import json
from typing import Any

import pytest

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.feedback.formats.entry import Entry
from bco_ray.feedback.formats.registry import detect
from bco_ray.feedback.formats.ultrafeedback import FORMAT
from bco_ray.feedback.parsing import read_entries, resolve_label


def test_one_vote_per_answer(said: Any) -> None:
    best = said("ultrafeedback")[0]
    assert best == {
        "kind": "vote",
        "prompt": "What is 2+2?",
        "completion": "4",
        "label": "5",
        "source": "sharegpt",
        "model": "gpt-4",
        "siblings": ["I think 5", "4!", "four"],
        "metadata": {"principle": "helpfulness", "overall_score": 9.0},
    }
    assert [vote["label"] for vote in said("ultrafeedback")[1:3]] == ["4", "N/A"]


def test_what_cannot_be_used(said: Any) -> None:
    assert said("ultrafeedback")[3:] == ["no_vote", "missing_prompt"]


@pytest.mark.parametrize(("rating", "label"), [("5", True), ("4", False), ("1", False), ("N/A", None)])
def test_five_is_a_thumbs_up(rating: str, label: bool | None) -> None:
    assert resolve_label({"label": rating}, {**DEFAULT_LABEL_MAP, **FORMAT.label_map})["label"] is label


def test_the_binarized_copy_is_pairs() -> None:
    asked = {"role": "user", "content": "2+2?"}
    sides = {
        side: [asked, {"role": "assistant", "content": words}] for side, words in (("chosen", "4"), ("rejected", "5"))
    }
    row = {"prompt": "2+2?", "prompt_id": "a1", "messages": sides["chosen"], "score_chosen": 8.5, "score_rejected": 2.0}
    found = detect([row | sides], where="train_prefs.parquet")
    assert found.name == "trl-paired"
    votes = [entry for entry in read_entries(json.dumps(row | sides).encode(), found) if isinstance(entry, Entry)]
    assert [(vote.fields["prompt"], vote.fields["label"]) for vote in votes] == [([asked], True), ([asked], False)]
