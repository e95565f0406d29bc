"""Bodies that are none, clients that never finish, prompts that never end: an envelope each, and others are served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bco_ray.serving.http.bodies import ChatRequest, TextRequest

HI: Any = [{"role": "user", "content": "Hello"}]

_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -(2**63), "\ud800", float("inf"), {"type": "text"}, "auto", "helper"])
)  # fmt: skip
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
_FIELDS = st.sampled_from(
    ["messages", "prompt", "temperature", "top_p", "top_k", "seed", "stop", "n", "stream", "stream_options", "user",
     "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format",
     "store", "logit_bias", "echo", "best_of", "label", "choice_index", "metadata", "comment", "feedback_token"]
)  # fmt: skip
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]) | _JSON, "content": _JSON})
_BODY = st.dictionaries(_FIELDS, _JSON, max_size=4)


@pytest.fixture(scope="module")
def client(shared_site: Any) -> Iterator[httpx.Client]:
    shared_site.engine.says("Hi")
    with httpx.Client(base_url=shared_site.url, timeout=60) as client:
        yield client


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if not response.is_success:
        assert set(response.json()) == {"error"}
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def send(client: httpx.Client, path: str, value: Any) -> httpx.Response:
    return client.post(path, content=json.dumps(value), headers={"content-type": "application/json"})


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(fields=_BODY, message=_MESSAGE)
def test_no_chat_body_breaks_it(client: httpx.Client, fields: dict[str, Any], message: Any) -> None:
    check(send(client, "/v1/chat/completions", {"model": "helper", "messages": [message], **fields}))


@FUZZ
@given(fields=_BODY)
def test_no_text_body_breaks_it(client: httpx.Client, fields: dict[str, Any]) -> None:
    check(send(client, "/v1/completions", {"model": "helper", "prompt": "x", **fields}))


@FUZZ
@given(fields=_BODY)
def test_no_vote_breaks_it(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"response_id": "chatcmpl-x", "label": True, **fields}
    check(send(client, "/v1/feedback", body))
    check(send(client, "/v1/feedback/batch", body))
    check(send(client, "/v1/chat/completions/chatcmpl-x", fields))


@FUZZ
@given(value=_JSON)
def test_nothing_else_breaks_it_either(client: httpx.Client, value: Any) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/feedback"):
        check(send(client, path, value))


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "helper", "messages": ' + b"[" * 50_000,
        b'{"model": "helper", "messages": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"model": "helper", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b', "messages": [{"role": "user"}]}',
        b'{"model": "helper", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "helper", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": NaN}',
        b'{"model": "helper", "suffix": "\\ud800", "messages": []}',
        b'{"\\ud800": 1, "\\u0000": 2, "response_id": "\\ud800", "label": true}',
        b"",
    ],
)
def test_json_at_its_limits(client: httpx.Client, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/feedback", "/v1/feedback/batch"):
        check(client.post(path, content=content, headers={"content-type": "application/json"}))


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{}] * 200_000},
        {"messages": HI * 20_000},
        {"tools": [1] * 200_000},
        {"tools": [{}] * 2_000},
        {"messages": [{"role": "user", "content": [1] * 200_000}]},
    ],
)
def test_one_mistake_of_many_is_enough(fields: dict[str, Any]) -> None:
    """Each costs time and memory in front of everybody else's streams."""
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate({"model": "helper", "messages": HI, **fields})
    assert raised.value.error_count() <= 2
    with pytest.raises(ValidationError) as raised:
        TextRequest.model_validate({"model": "helper", "prompt": [*[1] * 200_000, "x"]})
    assert raised.value.error_count() <= 2


def test_a_long_prompt_is_refused_quickly(client: httpx.Client, http_site: Any) -> None:
    body = {"model": "helper", "messages": [{"role": "user", "content": "word " * 2_000_000}]}
    began = time.monotonic()
    response = send(client, "/v1/chat/completions", body)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "at least" in response.json()["error"]["message"]
    assert time.monotonic() - began < 10
    assert http_site.engine.asked == []


def test_a_body_without_a_length_is_counted(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    try:
        response = client.post("/v1/feedback/batch", content=endless())
    except httpx.WriteError:
        return  # refused before all of it was sent
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_idle_and_slow_clients_keep_nobody_waiting(http_site: Any) -> None:
    host, port = http_site.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(1000)]
        for slow in idle[:100]:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        for _ in range(3):
            assert http_site.client.chat.completions.create(model="helper", messages=HI).choices[0].message.content
            for slow in idle[:100]:
                slow.sendall(b" ")
