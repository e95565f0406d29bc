"""Pairs become two votes, wherever the prompt is."""

Q = [{"role": "user", "content": "2+2?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_text_beside_a_prompt(said) -> None:
    assert said("trl-paired")[:2] == [
        {"kind": "vote", "id": "7:chosen", "prompt": "2+2?", "completion": "4", "label": True, "siblings": ["5"]},
        {"kind": "vote", "id": "7:rejected", "prompt": "2+2?", "completion": "5", "label": False, "siblings": ["4"]},
    ]


def test_messages_in_every_shape_are_the_same_votes(said) -> None:
    """With a prompt of messages; with none; with a text prompt that chosen repeats; and as a dialogue in text."""
    votes = said("trl-paired")[2:10]
    for up, down in zip(votes[::2], votes[1::2], strict=True):
        assert up == {"kind": "vote", "prompt": Q, "completion": answer("4"), "label": True, "siblings": ["5"]}
        assert down == {"kind": "vote", "prompt": Q, "completion": answer("5"), "label": False, "siblings": ["4"]}


def test_what_is_no_pair(said) -> None:
    assert said("trl-paired")[10:] == ["missing_prompt", "no_difference", "missing_prompt"]
