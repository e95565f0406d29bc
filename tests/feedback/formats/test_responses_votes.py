"""Chat completions, each choice an answer, and votes on them."""

import json


def test_each_choice_is_an_answer(said) -> None:
    one, two = said("responses-votes")[:2]
    assert one == {
        "kind": "response", "response_id": "chatcmpl-1", "model": "m", "user": "ada", "created_at": 1760000000.0,
        "prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}],
        "metadata": {"finish_reason": "stop"},
    }  # fmt: skip
    assert (two["response_id"], two["metadata"]) == ("chatcmpl-1:1", {"finish_reason": "length"})


def test_chunks_text_completions_and_answers_without_a_prompt(said) -> None:
    chunk, text, lost = said("responses-votes")[2:5]
    assert (chunk, lost) == ("streamed_chunk", "missing_prompt")
    assert (text["prompt"][0]["content"], text["completion"][0]["content"]) == ("2+", "2")


def test_votes(said) -> None:
    up, withdrawn, second, *refused = said("responses-votes")[5:]
    assert up == {
        "kind": "rating", "response_id": "chatcmpl-1", "user": "bob", "created_at": 1760000100.0, "label": "thumbs_up"
    }  # fmt: skip
    assert withdrawn["label"] is None
    assert (second["response_id"], second["user"], second["created_at"]) == ("chatcmpl-1:1", "7", 1760000300.0)
    assert (second["label"], refused) == ("0", ["missing_response_id", "bad_time"])


def test_votes_survive_the_way_through_json(said) -> None:
    for entry in said("responses-votes"):
        json.dumps(entry, allow_nan=False)
