"""Prompts and answers in the shapes that applications log."""

from typing import Any

import pytest

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import answer_of, message_of, prompt_of

Q, A = [{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    "logged",
    ["2+2?", Q, {"messages": Q}, {"question": "2+2?"}, {"input": "2+2?", "k": 3}, {"anything": "2+2?"},
     {"input": {"query": "2+2?"}}, {"args": [], "kwargs": {}, "prompt": "2+2?"},
     '{"messages": [["human", "no"]], "query": "2+2?"}', {"messages": [[{"type": "human", "content": "2+2?"}]]},
     {"contents": [{"role": "user", "parts": [{"text": "2+2?"}]}]},
     {"chat_history": [], "question": "2+2?"}, {"messages": Q, "query": "2+2?"}],
)  # fmt: skip
def test_prompts(logged: Any) -> None:
    assert prompt_of(logged) == Q


def test_a_history_with_a_question() -> None:
    assert prompt_of({"chat_history": [*Q, *A], "question": "And 3+3?"})[2:] == [
        {"role": "user", "content": "And 3+3?"}
    ]


@pytest.mark.parametrize(
    "logged", [None, "", [], {}, 7, {"a": "b", "c": "d"}, {"messages": []}, {"system": "Be brief."}]
)
def test_no_prompt(logged: Any) -> None:
    with pytest.raises(Refused) as refused:
        prompt_of(logged)
    assert refused.value.reason == "missing_prompt"


@pytest.mark.parametrize(
    "logged",
    ["4", A, A[0], {"messages": [*Q, *A]}, {"choices": [{"message": A[0]}]}, {"choices": [{"text": "4"}]},
     {"output": "4"}, {"answer": {"content": "4", "role": "assistant"}}, {"anything": "4"}, {"output": {"text": "4"}},
     [{"type": "text", "text": "4"}], {"content": [{"type": "text", "text": "4"}], "role": "assistant"},
     {"generations": [[{"text": "4"}]]}, {"type": "ai", "content": "4"}],
)  # fmt: skip
def test_answers(logged: Any) -> None:
    assert answer_of(logged) == A


@pytest.mark.parametrize("logged", [None, "", [], {}, 7, Q, {"choices": [{}]}, {"a": "b", "c": "d"}])
def test_no_answer(logged: Any) -> None:
    with pytest.raises(Refused) as refused:
        answer_of(logged)
    assert refused.value.reason == "no_answer"


def test_parts_that_are_not_all_text_stay_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    message = message_of({"role": "user", "content": ["What is ", {"type": "input_text", "text": "this?"}, image]})
    assert message["content"] == [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}, image]


def test_langchains_calls_become_openais() -> None:
    call = {"name": "sum", "args": {"a": 2}, "id": "c1", "type": "tool_call"}
    message = message_of({"type": "ai", "content": "", "tool_calls": [call]})
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 2}'}}
    ]
