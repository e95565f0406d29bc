"""Inferences and boolean feedback."""


def test_an_inference_with_a_tool(said) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert said("tensorzero")[0] == {
        "kind": "response", "response_id": "i1", "source": "tensorzero", "model": "gpt_4o", "user": "ada",
        "conversation_id": "e1", "created_at": 1777629600.0, "metadata": {"function": "chat"},
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Rome?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "clear", "name": "weather", "tool_call_id": "c1"},
        ],
        "completion": [{"role": "assistant", "content": "Clear."}],
    }  # fmt: skip


def test_columns_of_json_text_and_times_without_a_zone(said) -> None:
    inference = said("tensorzero")[1]
    assert (inference["prompt"][0]["content"], inference["completion"][0]["content"]) == ("2+2?", "4")
    assert inference["created_at"] == 1777629600.0


def test_feedback(said) -> None:
    up, down, *refused = said("tensorzero")[2:]
    assert (up["kind"], up["response_id"], up["user"], up["label"]) == ("rating", "i1", "bob", True)
    assert (down["label"], down["metadata"]) == (0, {"score": "thumb"})
    assert refused == ["not_a_thumb", "not_a_thumb", "no_vote", "missing_prompt"]
