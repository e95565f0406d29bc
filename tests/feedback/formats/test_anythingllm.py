"""The export's GOOD, BAD and --, and the table's feedbackScore."""


def test_exported_chats(said) -> None:
    good, bad, unrated = said("anythingllm")[:3]
    assert good == {
        "kind": "vote", "response_id": "anythingllm:12", "source": "anythingllm", "user": "ada", "label": "GOOD",
        "created_at": 1777629600.0, "metadata": {"workspace": "Maths"},
        "prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip
    assert (bad["label"], "user" in bad) == ("BAD", False)
    assert unrated == "no_vote"


def test_rows_of_the_table_hold_the_answer_as_json(said) -> None:
    down, unrated = said("anythingllm")[3:5]
    assert (down["completion"][0]["content"], down["label"], down["user"]) == ("7", False, "4")
    assert (down["created_at"], down["conversation_id"]) == (1777629720.0, "9")
    assert unrated == "no_vote"


def test_an_answer_that_is_json_stays_json(said) -> None:
    good, missing = said("anythingllm")[5:]
    assert good["completion"][0]["content"] == '{"text": "8"}'
    assert missing == "missing_completion"
