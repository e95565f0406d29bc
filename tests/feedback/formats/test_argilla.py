"""One vote for each submitted response to a question of labels."""


def test_responses_by_question(said) -> None:
    good, bad, stars = said("argilla")[:3]
    assert good == {
        "kind": "vote", "response_id": "x", "source": "argilla", "model": "m", "user": "ada", "label": "good",
        "metadata": {"score": "thumb"},
        "prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip
    assert (bad["user"], bad["label"]) == ("bob", "bad")
    assert stars == "not_a_thumb"


def test_responses_by_user_on_a_chat(said) -> None:
    down, discarded = said("argilla")[3:5]
    assert (down["label"], down["created_at"], down["updated_at"]) == ("false", 1777629600.0, 1777629660.0)
    assert (down["prompt"][0]["content"], down["completion"][0]["content"]) == ("2+3?", "6")
    assert discarded == "no_vote"


def test_records_that_cannot_be_used(said) -> None:
    assert said("argilla")[5:] == ["no_vote", "missing_prompt"]
