"""Messages of the API and of the console; a rating of null was withdrawn, no feedback is no vote."""


def test_a_message_of_the_api(said) -> None:
    assert said("dify")[0] == {
        "kind": "vote", "response_id": "m1", "source": "dify", "conversation_id": "c1", "created_at": 1760000000.0,
        "prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}],
        "label": "like",
    }  # fmt: skip


def test_a_message_of_the_console_with_two_votes(said) -> None:
    user, admin = said("dify")[1:3]
    assert user["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
    assert (user["user"], user["label"], user["comment"], user["correction"]) == ("ada", "dislike", "It is 5.", "5")
    assert (admin["user"], admin["label"]) == ("boss", "like")


def test_withdrawn_unrated_and_empty(said) -> None:
    withdrawn, *refused = said("dify")[3:]
    assert withdrawn["label"] is None
    assert refused == ["no_vote", "missing_completion"]
