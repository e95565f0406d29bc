"""What other people's clients need: openai's helpers, LiteLLM, LangChain; logprobs in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import TokenEvent, TokenLogprob
from bco_ray.serving.http.logprobs import LogprobWriter, token_bytes
from bco_ray.text import Tokenizer, load_tokenizer

HI: Any = [{"role": "user", "content": "Hello"}]
ASK: Any = {"model": "helper", "messages": HI}


@pytest.fixture(scope="module")
def tokenizer(tiny_dir: Path) -> Tokenizer:
    return load_tokenizer(tiny_dir)


def spoken(tokenizer: Tokenizer, text: str, *, held: int = 0) -> list[TokenEvent]:
    """Events of a text with an end token; the first `held` tokens show nothing, the next one makes up for it."""
    ids = tokenizer(text)["input_ids"]
    events, shown = [], ""
    for place, token in enumerate(ids):
        shown += tokenizer.decode([token])
        text_now, shown = ("", shown) if place < held else (shown, "")
        events.append(TokenEvent([token], text_now, logprobs=[TokenLogprob(token, -0.5, [(token, -0.5), (7, -1.5)])]))
    end = TokenLogprob(tokenizer.eos_token_id, -math.inf, [])
    return [*events, TokenEvent([tokenizer.eos_token_id], "", "stop", ended=True, logprobs=[end], cached=3)]


# --- logprobs ---------------------------------------------------------------------------------------------------------


def test_chat_logprobs_whole_and_streamed_are_equal(http_site: Any, tokenizer: Tokenizer) -> None:
    http_site.engine.events = spoken(tokenizer, "What é", held=2)
    whole = http_site.client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    content = whole.choices[0].logprobs.content
    assert http_site.engine.asked[0].logprobs == 2
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "What é"
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)
    assert content[0].logprob == -0.5
    with http_site.client.chat.completions.stream(**ASK, logprobs=True, top_logprobs=2) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].logprobs.content == content


def test_one_alternative_less_than_the_engine_says(http_site: Any, tokenizer: Tokenizer) -> None:
    http_site.engine.events = spoken(tokenizer, "he")
    answer = http_site.client.chat.completions.create(**ASK, logprobs=True)
    assert (http_site.engine.asked[0].logprobs, answer.choices[0].logprobs.content[0].top_logprobs) == (0, [])
    assert http_site.client.chat.completions.create(**ASK).choices[0].logprobs is None


def test_text_logprobs(http_site: Any, tokenizer: Tokenizer) -> None:
    http_site.engine.events = spoken(tokenizer, "What é")
    answer = http_site.client.completions.create(model="helper", prompt="x", logprobs=1)
    found = answer.choices[0].logprobs
    assert found.token_logprobs == [-0.5] * len(found.tokens)
    assert found.tokens[-2:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert found.text_offset[-2:] == [5, 5]
    assert found.top_logprobs[0] == {found.tokens[0]: -0.5}
    chunks = http_site.client.completions.create(model="helper", prompt="x", logprobs=1, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == found.text_offset


def test_tokens_as_bytes(tokenizer: Tokenizer) -> None:
    text = "What is é, 猫?\n"
    ids = tokenizer(text)["input_ids"]
    assert b"".join(token_bytes(tokenizer, i) for i in ids).decode() == text
    assert token_bytes(tokenizer, tokenizer.eos_token_id) == b"<|im_end|>"
    written = LogprobWriter(tokenizer, 0, chat=True).write([TokenLogprob(ids[0], -math.inf)])
    assert written["content"][0]["logprob"] == -9999.0


def test_the_embedded_engines_logprobs(open_site: Callable[..., Any], tiny_dir: Path) -> None:
    engine = HFEngine(tiny_dir, context_window=512)
    asyncio.run(engine.start())
    try:
        site = open_site(engine=engine)
        answer = site.client.chat.completions.create(**ASK, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == (
            answer.choices[0].message.content
        )
        assert all(entry.logprob == entry.top_logprobs[0].logprob <= 0 for entry in content)
        assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens
    finally:
        asyncio.run(engine.stop())


# --- clients ----------------------------------------------------------------------------------------------------------


def test_openais_helpers(http_site: Any) -> None:
    with http_site.client.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert (final.choices[0].message.content, final.usage.completion_tokens) == ("Hi there", 2)
    raw = http_site.client.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-request-id"]
    assert raw.parse().model_extra["feedback_token"] == raw.headers["x-feedback-token"]


def test_cached_tokens_are_reported(http_site: Any) -> None:
    http_site.engine.events = [TokenEvent([1], "x", "stop", cached=5)]
    usage = http_site.client.chat.completions.create(**ASK).usage
    assert usage.prompt_tokens_details.cached_tokens == 5


def test_litellm(http_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks GitHub for prices
    litellm = pytest.importorskip("litellm")
    options = {"model": "openai/helper", "messages": HI, "api_base": f"{http_site.url}/v1", "api_key": "unused"}
    answer = litellm.completion(**options)
    assert (answer.choices[0].message.content, answer.usage.completion_tokens) == ("Hi there", 2)
    chunks = litellm.completion(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi there"


def test_langchain(http_site: Any) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    model = chat_openai(model="helper", base_url=f"{http_site.url}/v1", api_key="unused", max_retries=0)
    answer = model.invoke("Hello")
    assert (answer.content, answer.usage_metadata["output_tokens"]) == ("Hi there", 2)
    assert "".join(chunk.content for chunk in model.stream("Hello")) == "Hi there"


# --- what is refused by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"logit_bias": {"5": 10}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_would_change_the_answer_is_refused(http_site: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        http_site.client.chat.completions.create(**ASK, extra_body=fields)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", next(iter(fields)))


@pytest.mark.parametrize("fields", [{"best_of": 3}, {"echo": True}, {"suffix": "x"}, {"prompt": ["a", "b"]}])
def test_legacy_parameters_are_refused(http_site: Any, fields: dict[str, Any]) -> None:
    error = http_site.post("/v1/completions", **{"model": "helper", "prompt": "x", **fields}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(fields)))


def test_what_asks_for_nothing_is_accepted(http_site: Any) -> None:
    neutral = {
        "response_format": {"type": "text"}, "tool_choice": "auto", "modalities": ["text"], "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "functions": [], "tools": [], "parallel_tool_calls": True,
        "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low",
    }  # fmt: skip
    assert http_site.post("/v1/chat/completions", **ASK, **neutral).status_code == 200
    legacy = {"model": "helper", "prompt": ["x"], "best_of": 1, "echo": False, "suffix": None}
    assert http_site.post("/v1/completions", **legacy).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 0}, "max_tokens"), ({"n": 0}, "n"), ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
     ({"top_logprobs": 2}, "top_logprobs"), ({"stop": ["a"] * 17}, "stop"), ({"temperature": -1}, "temperature")],
)  # fmt: skip
def test_bad_values_are_named(http_site: Any, fields: dict[str, Any], param: str) -> None:
    response = http_site.post("/v1/chat/completions", **ASK, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (422, param)


def test_tools_reach_a_template_that_knows_them(open_site: Callable[..., Any], tokenizer: Tokenizer) -> None:
    site = open_site(template="{% if tools %}TOOLS:{{ tools | length }}{% endif %}" + tokenizer.chat_template)
    site.engine.says("ok")
    tools = [{"type": "function", "function": {"name": "f"}}]
    site.client.chat.completions.create(**ASK, tools=tools)
    site.client.chat.completions.create(**ASK, tools=tools, tool_choice="none")
    shown = [tokenizer.decode(asked.token_ids).startswith("TOOLS:1") for asked in site.engine.asked]
    assert shown == [True, False]


def test_raw_token_prompts_are_checked(http_site: Any) -> None:
    for prompt in ([], [10_000], ""):
        response = http_site.post("/v1/completions", model="helper", prompt=prompt)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
