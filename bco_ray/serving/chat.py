"""`/v1/chat/completions` and `/v1/completions`: render, generate, answer whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import jinja2
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse

from bco_ray.errors import BcoError
from bco_ray.schema import Message
from bco_ray.serving import wire
from bco_ray.serving.args import Served
from bco_ray.serving.engine import Engine, GenRequest
from bco_ray.serving.errors import ApiError, as_api_error
from bco_ray.serving.generation import Generation, Indexed, Prompt
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import FeedbackLog, new_completion_id
from bco_ray.text import Tokenizer, content_text, template_inputs


@dataclass(frozen=True)
class Backend:
    """What the routes work with."""

    engine: Engine
    served: Served
    tokenizer: Tokenizer
    log: FeedbackLog
    metrics: Metrics


def router(backend: Backend) -> APIRouter:
    """The two generating routes."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat_completions(body: wire.ChatRequest) -> Response:
        check_model(backend.served, body.model)
        return await _answer(backend, body, _chat_prompt(backend.tokenizer, body), chat=True)

    @routes.post("/v1/completions")
    async def completions(body: wire.TextRequest) -> Response:
        check_model(backend.served, body.model)
        return await _answer(backend, body, _text_prompt(backend.tokenizer, body.prompt), chat=False)

    return routes


def check_model(served: Served, name: str) -> None:
    """Raises ApiError 404 `model_not_found` unless `name` is one of the served model's."""
    if name not in served.names:
        known = ", ".join((served.model_id, *served.aliases))
        message = f"The model {name!r} does not exist here. Served: {known}."
        raise ApiError(404, message, code="model_not_found", param="model")


async def _answer(backend: Backend, body: wire.SamplingRequest, prompt: Prompt, *, chat: bool) -> Response:
    requests = _requests(backend.served, body, prompt.ids)
    answer_id = new_completion_id("chatcmpl" if chat else "cmpl")
    generation = Generation(backend.engine, wire.Head(answer_id, wire.now(), backend.served, chat), prompt, requests)
    if not body.stream:
        return await _whole(backend, body, generation)
    events = generation.events()
    first = await anext(events)  # what goes wrong before the first token is a plain HTTP error
    return StreamingResponse(
        _stream(backend, body, generation, first, events),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _whole(backend: Backend, body: wire.SamplingRequest, generation: Generation) -> Response:
    async with aclosing(generation.events()) as events:
        async for _ in events:
            pass
    await _commit(backend, body, generation)
    return JSONResponse(wire.reply(generation.head, len(generation.prompt.ids), generation.choices))


async def _stream(
    backend: Backend, body: wire.SamplingRequest, generation: Generation, first: Indexed, rest: AsyncGenerator[Indexed]
) -> AsyncIterator[str]:
    """Server-sent events; an error in the middle is the last event, as an envelope and without `[DONE]`."""
    async with aclosing(rest):
        try:
            async for chunk in _chunks(backend, body, generation, first, rest):
                yield _sse({"usage": None, **chunk} if body.wants_usage else chunk)
            yield "data: [DONE]\n\n"
        except BcoError as error:
            yield _sse(as_api_error(error).body)
        except Exception as error:
            yield _sse(as_api_error(error).body)
            raise


async def _chunks(
    backend: Backend, body: wire.SamplingRequest, generation: Generation, first: Indexed, rest: AsyncGenerator[Indexed]
) -> AsyncIterator[wire.Json]:
    head, opened = generation.head, set[int]()
    async for index, event in _chained(first, rest):
        opening = wire.first_chunk(head, index) if index not in opened else None
        opened.add(index)
        if opening:
            yield opening
        if event.text:
            yield wire.text_chunk(head, index, event.text)
    await _commit(backend, body, generation)
    for index, choice in enumerate(generation.choices):
        yield wire.final_chunk(head, index, choice.finish_reason)
    if body.wants_usage:
        yield wire.usage_chunk(head, len(generation.prompt.ids), generation.choices)


async def _chained(first: Indexed, rest: AsyncIterator[Indexed]) -> AsyncIterator[Indexed]:
    yield first
    async for item in rest:
        yield item


async def _commit(backend: Backend, body: wire.SamplingRequest, generation: Generation) -> None:
    sampling = body.model_dump(include={"temperature", "top_p", "top_k", "seed", "stop", "n"}, exclude_none=True)
    await generation.commit(backend.log, {**sampling, "max_tokens": body.limit}, body.user)
    backend.metrics.answered(len(generation.prompt.ids), generation.choices)


def _sse(value: wire.Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _requests(served: Served, body: wire.SamplingRequest, ids: list[int]) -> list[GenRequest]:
    """One request per choice, cut to what the window leaves. Raises ApiError if the prompt alone fills it."""
    room = served.context_window - len(ids)
    if room < 1:
        message = (
            f"This prompt has {len(ids)} tokens; the model reads {served.context_window}, and at least one is needed "
            "for the answer. Shorten the messages."
        )
        raise ApiError(400, message, code="context_length_exceeded", param="messages")
    return [
        GenRequest(
            token_ids=ids,
            max_new=min(body.limit or served.default_max_tokens, room),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            seed=None if body.seed is None else body.seed + index,
            stop=tuple(body.stop or ()),
        )
        for index in range(body.n or 1)
    ]


def _chat_prompt(tokenizer: Tokenizer, body: wire.ChatRequest) -> Prompt:
    """Rendered by the model's own template. Raises ApiError if the template refuses the messages."""
    messages = template_inputs([_plain(i, message) for i, message in enumerate(body.messages)])
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tools=body.tools, tokenize=True, add_generation_prompt=True, return_dict=True
        )
    except (ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
        message = f"The model's chat template refuses these messages: {error}"
        raise ApiError(400, message, code="template_error", param="messages") from None
    return Prompt(list(encoded["input_ids"]), messages, body.tools)


def _plain(position: int, message: Message) -> Message:
    """Text parts joined to one string: what most templates can render, and what training will render again."""
    if not isinstance(message.content, list):
        return message
    if any(part.get("type", "text") != "text" for part in message.content):
        where = f"messages.{position}.content"
        raise ApiError(400, f"{where}: this model reads text parts only.", code="unsupported_content", param=where)
    return message.model_copy(update={"content": content_text(message)})


def _text_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> Prompt:
    """The log keeps a raw prompt as one user message."""
    ids: list[Any] = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    return Prompt(list(ids), [{"role": "user", "content": text}])
