"""Runs and feedback, apart and together."""


def test_a_run_in_langchains_words(said) -> None:
    assert said("langsmith")[0] == {
        "kind": "response", "response_id": "r1", "source": "langsmith", "user": "ada", "model": "m",
        "conversation_id": "t1", "created_at": 1777629600.123456, "metadata": {"run_type": "llm"},
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip


def test_a_run_with_its_feedback(said) -> None:
    down, note = said("langsmith")[1:3]
    assert (down["kind"], down["id"], down["label"], down["correction"]) == ("vote", "f5", 0, "5")
    assert (down["prompt"][0]["content"], down["completion"][0]["content"]) == ("2+3?", "6")
    assert note == "no_vote"


def test_feedback_apart(said) -> None:
    up, withdrawn, *refused = said("langsmith")[3:]
    assert up == {
        "kind": "rating", "response_id": "r1", "id": "f1", "user": "bob", "created_at": 1777629660.0,
        "comment": "Right.", "metadata": {"score": "user_score"}, "label": 1,
    }  # fmt: skip
    assert withdrawn["label"] is None
    assert refused == ["not_a_thumb", "not_human", "not_an_answer"]
