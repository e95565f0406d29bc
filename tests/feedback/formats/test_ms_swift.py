"""messages and label: the last message is rated."""


def test_the_last_message_is_rated(said) -> None:
    up, down, *refused = said("ms-swift")
    assert up["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert up["completion"] == [{"role": "assistant", "content": "4"}]
    assert (up["label"], down["label"]) == (True, 0)
    assert refused == ["no_answer", "missing_prompt", "invalid_message"]
