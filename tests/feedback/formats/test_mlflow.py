"""Assessments by people on traces, whole or as rows of the trace table."""


def test_a_trace_with_spans(said) -> None:
    up, *refused = said("mlflow")[:4]
    assert up == {
        "kind": "vote", "id": "a-1", "response_id": "tr-1", "source": "mlflow", "user": "bob",
        "conversation_id": "s1", "created_at": 1777629660.0, "comment": "Right.",
        "metadata": {"score": "thumbs"}, "label": True,
        "prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip
    assert refused == ["not_human", "no_vote", "not_a_thumb"]


def test_a_row_of_the_trace_table(said) -> None:
    down, *refused = said("mlflow")[4:]
    assert (down["label"], down["created_at"], down["updated_at"]) == (False, 1777629720.0, 1777629721.0)
    assert (down["prompt"][0]["content"], down["completion"][0]["content"]) == ("2+3?", "6")
    assert "user" not in down  # `default` is nobody
    assert refused == ["no_vote", "no_answer"]
