"""kto_tag beside Alpaca's columns, ShareGPT's conversations and plain messages."""


def test_alpaca_columns(said) -> None:
    assert said("llama-factory")[0] == {
        "kind": "vote",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Add up\n2+2"},
        ],
        "completion": [{"role": "assistant", "content": "4"}],
        "label": True,
    }


def test_sharegpt_with_a_tool(said) -> None:
    vote = said("llama-factory")[1]
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert vote["prompt"] == [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"sky": "clear"}'},
    ]
    assert vote["tools"] == [{"name": "weather"}]
    assert vote["label"] is False


def test_messages_and_what_cannot_be_used(said) -> None:
    vote, *refused = said("llama-factory")[2:]
    assert [m["role"] for m in vote["prompt"]] == ["system", "user"]
    assert vote["label"] == "true"
    assert refused == ["no_answer", "missing_completion", "invalid_history"]
