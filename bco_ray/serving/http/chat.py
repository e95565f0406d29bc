"""`/v1/chat/completions` and `/v1/completions`: render, generate, answer whole or as server-sent events."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bco_ray.errors import BcoError
from bco_ray.serving.http import replies, wire
from bco_ray.serving.http.bodies import ChatRequest, SamplingRequest, TextRequest
from bco_ray.serving.http.errors import as_api_error
from bco_ray.serving.http.feedback_tokens import HEADER
from bco_ray.serving.http.generation import Caller, Indexed
from bco_ray.serving.http.prompts import prompt_of
from bco_ray.serving.http.replying import Answer, Backend
from bco_ray.web.openapi import about, events

Timeout = Annotated[float | None, Header(alias="x-deadline-seconds", gt=0, allow_inf_nan=False)]
Authorization = Annotated[str | None, Header(include_in_schema=False)]

STREAMED = (replies.ChatCompletionChunk, replies.TextCompletionChunk)
"""Events of the streams."""

_EVENTS = "An answer, or with `stream` its chunks as they come; an error in the middle is the last event."
_CHAT, _TEXT = (events(chunk, _EVENTS) for chunk in STREAMED)


def router(backend: Backend) -> APIRouter:
    """The two generating routes."""
    routes = APIRouter(tags=["chat"])

    def caller(body: SamplingRequest, authorization: str | None, timeout: float | None) -> Caller:
        seconds = min(timeout or backend.timeout_seconds, backend.timeout_seconds)
        return Caller(time.time() + seconds, _share(authorization, body.user))

    @routes.post(
        "/v1/chat/completions",
        **about("createChatCompletion", "Answer messages", replies.ChatCompletion, 404, 408, also=_CHAT),
    )
    async def chat_completions(
        body: ChatRequest, authorization: Authorization = None, timeout: Timeout = None
    ) -> Response:
        return await _answer(backend, body, caller(body, authorization, timeout))

    @routes.post(
        "/v1/completions",
        **about("createCompletion", "Continue a prompt", replies.TextCompletion, 404, 408, also=_TEXT),
    )
    async def completions(body: TextRequest, authorization: Authorization = None, timeout: Timeout = None) -> Response:
        return await _answer(backend, body, caller(body, authorization, timeout))

    return routes


def _share(authorization: str | None, user: str | None) -> str:
    """Whose share of the engine a request takes; a key only as its hash."""
    return hashlib.sha256(authorization.encode()).hexdigest()[:16] if authorization else user or ""


async def _answer(backend: Backend, body: SamplingRequest, caller: Caller) -> Response:
    """One version answers all of it: the lease lasts until the reply is whole, or its stream has ended."""
    with ExitStack() as lease:
        target = lease.enter_context(backend.catalog.lease(body.model, body.user))
        answer = Answer(backend, body, target, await prompt_of(target, body), caller)
        headers = {HEADER: answer.head.feedback_token}
        if not body.stream:
            return JSONResponse(await answer.whole(), headers=headers)
        events = answer.events()
        first = await anext(events)  # what goes wrong before the first token is a plain HTTP error
        return EventStream(answer, first, events, lease.pop_all(), usage=body.wants_usage, headers=headers)


class EventStream(StreamingResponse):
    """Server-sent events. Lets go of the version when the last byte has left or the client has."""

    def __init__(
        self,
        answer: Answer,
        first: Indexed,
        rest: AsyncGenerator[Indexed],
        lease: ExitStack,
        *,
        usage: bool,
        headers: dict[str, str],
    ) -> None:
        headers = {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        chunks = answer.chunks(_chained(first, rest))
        super().__init__(_events(chunks, usage=usage), media_type="text/event-stream", headers=headers)
        self._answer, self._rest, self._lease = answer, rest, lease

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._lease, self._answer.visible():
            async with aclosing(self._rest):
                await super().__call__(scope, receive, send)


async def _events(chunks: AsyncIterator[wire.Json], *, usage: bool) -> AsyncIterator[str]:
    """An error in the middle is the last event, as an envelope and without `[DONE]`."""
    try:
        async for chunk in chunks:
            yield _sse({"usage": None, **chunk} if usage else chunk)
        yield "data: [DONE]\n\n"
    except BcoError as error:
        yield _sse(as_api_error(error).body)
    except Exception as error:
        yield _sse(as_api_error(error).body)
        raise


async def _chained(first: Indexed, rest: AsyncIterator[Indexed]) -> AsyncIterator[Indexed]:
    yield first
    async for item in rest:
        yield item


def _sse(value: wire.Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
