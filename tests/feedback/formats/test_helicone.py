"""Requests with the feedback on them, in snake and camel case."""


def test_a_request_of_the_api(said) -> None:
    assert said("helicone")[0] == {
        "kind": "vote", "id": "f1", "response_id": "q1", "source": "helicone", "model": "gpt-4o", "user": "ada",
        "conversation_id": "s1", "created_at": 1777629660.0, "label": True, "metadata": {"provider": "OPENAI"},
        "tools": [{"type": "function", "function": {"name": "sum"}}],
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        "completion": [{"role": "assistant", "content": "4"}],
    }  # fmt: skip


def test_bodies_as_json_text_in_anthropics_shape(said) -> None:
    down = said("helicone")[1]
    assert down["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
    assert (down["completion"][0]["content"], down["label"]) == ("6", 0)


def test_withdrawn_unrated_and_failed(said) -> None:
    withdrawn, *refused = said("helicone")[2:]
    assert withdrawn["label"] is None
    assert refused == ["no_vote", "no_answer"]
