"""OpenAI's supervised conversations: every message of the assistant that has weight is an answer to learn from."""

from __future__ import annotations

import pytest

from bco_ray.feedback.formats.openai_chat import recognises

ASKED = {"role": "user", "content": "2+2?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"role": "assistant", "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]}  # fmt: skip


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_conversation_is_a_demonstration_without_a_label(said) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, ASKED]
    assert said("openai-chat")[0] == {"kind": "demonstration", "prompt": prompt, "completion": [answer("4")]}


def test_each_answer_of_several_turns_is_one_on_what_came_before(said) -> None:
    first, second = said("openai-chat")[1:3]
    assert first == {"kind": "demonstration", "tools": TOOLS, "prompt": [ASKED], "completion": [answer("4")]}
    earlier = [ASKED, answer("4"), {"role": "user", "content": "3+3?"}]
    assert second == {"kind": "demonstration", "tools": TOOLS, "prompt": earlier, "completion": [answer("6")]}


def test_an_answer_of_weight_0_is_read_and_not_learned(said) -> None:
    found = said("openai-chat")[3]
    assert found["prompt"] == [ASKED, answer("5"), {"role": "user", "content": "Sure?"}]
    assert found["completion"] == [answer("4")]


def test_a_call_of_a_tool_is_an_answer_too(said) -> None:
    call, final = said("openai-chat")[4:6]
    assert (call["prompt"], call["completion"]) == ([ASKED], [CALL])
    assert final["prompt"][1:] == [CALL, {"role": "tool", "tool_call_id": "c1", "content": "4"}]


def test_what_cannot_be_learned_from(said) -> None:
    reasons = ["invalid_weight", "no_weight", "missing_prompt", "no_answer", "deprecated_functions", "no_answer",
               "invalid_message"]  # fmt: skip
    assert said("openai-chat")[6:] == reasons


@pytest.mark.parametrize("vote", ["label", "rating", "kto_tag", "score", "feedback"])
def test_a_row_with_any_other_column_is_not_taken_for_praise(vote: str) -> None:
    row = {"messages": [ASKED, answer("4")]}
    assert recognises(row)
    assert not recognises({**row, vote: "bad"})
