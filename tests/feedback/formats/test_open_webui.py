"""The vote's message is found in the snapshot's tree; its way up is the prompt."""

import pytest

from bco_ray.errors import Refused
from bco_ray.feedback.formats.open_webui import FORMAT


def test_a_vote_with_all_that_is_known_of_it(said) -> None:
    assert said("open-webui")[0] == {
        "kind": "vote", "id": "f1", "user": "ada", "model": "llama3", "conversation_id": "c1", "response_id": "m4",
        "source": "open-webui", "created_at": 1760000000.0, "updated_at": 1760000100.0, "label": 1,
        "comment": "Right.", "tags": ["maths"], "siblings": ["5"],
        "metadata": {"reason": "accurate_information", "stars": 8, "arena": False},
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "2+2?"},
        ],
        "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip


def test_ratings_as_text_or_withdrawn_and_a_flatter_snapshot(said) -> None:
    down, neutral = said("open-webui")[1:3]
    assert (down["label"], down["completion"][0]["content"]) == ("-1", "Hello!")
    assert neutral["label"] is None
    assert FORMAT.label_map["-1"] is False


def test_broken_snapshots(said) -> None:
    reasons = ["missing_message", "broken_tree", "broken_tree", "not_an_answer", "missing_snapshot"]
    assert said("open-webui")[3:8] == reasons


def test_annotated_messages_of_a_chat(said) -> None:
    down, *refused = said("open-webui")[8:]
    assert (down["user"], down["response_id"], down["model"], down["label"]) == ("bob", "m2", "phi", -1)
    assert (down["comment"], down["tags"], down["created_at"]) == ("Rude.", ["tone"], 1750000001.0)
    assert refused == ["broken_tree", "no_vote"]


def test_feedback_that_is_no_rating(rows) -> None:
    row = {**rows("open-webui")[0], "type": "arena", "data": {"winner": "llama3"}}
    with pytest.raises(Refused) as refused:
        list(FORMAT.read(row))
    assert refused.value.reason == "no_vote"
