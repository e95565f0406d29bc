"""Traces and scores, apart and together; only people's thumbs."""


def test_a_trace_and_its_score_apart(said) -> None:
    trace, score = said("langfuse")[:2]
    assert trace == {
        "kind": "response", "response_id": "t1", "source": "langfuse", "user": "ada", "model": "m",
        "conversation_id": "s1", "created_at": 1777629600.0, "tags": ["app"],
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip
    assert score == {
        "kind": "rating", "response_id": "t1", "id": "s-1", "user": "bob", "created_at": 1777629660.0,
        "comment": "Right.", "metadata": {"score": "user-feedback"}, "label": 1,
    }  # fmt: skip


def test_scores_that_are_no_thumb_of_a_person(said) -> None:
    assert said("langfuse")[2:4] == ["not_a_thumb", "not_human"]


def test_a_category_counts_by_its_name_not_its_number(said) -> None:
    down, nowhere = said("langfuse")[4:6]
    assert down["label"] == "thumbs-down"
    assert nowhere == "missing_response_id"


def test_a_trace_with_its_scores(said) -> None:
    down, *refused = said("langfuse")[6:]
    assert (down["kind"], down["response_id"], down["id"], down["label"]) == ("vote", "t2", "s-6", 0)
    assert (down["prompt"][0]["content"], down["completion"][0]["content"]) == ("2+3?", "6")
    assert refused == ["not_a_thumb", "no_answer", "not_a_trace"]
