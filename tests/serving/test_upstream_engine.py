"""`UpstreamEngine` in front of another bco, and of a server that says what it is told to, most of it bad."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fastapi
import httpx
import pytest
import uvicorn
from fastapi.responses import JSONResponse, Response, StreamingResponse

from bco_ray.errors import ModelError
from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import (
    Adapter,
    DeadlineError,
    Engine,
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    RequestRefusedError,
    TokenEvent,
    TokenLogprob,
)
from bco_ray.serving.engines.upstream.engine import UpstreamEngine
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer

T = TypeVar("T")
Json = dict[str, Any]
CUT, SILENCE, ENDLESS = object(), object(), object()
"""What a server may do instead of sending an event: break the connection, say nothing more, never end."""


@asynccontextmanager
async def listening(api: Any) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="critical", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@dataclass
class Upstream:
    """A scripted server: `events` of the stream, or a `status` that is none."""

    events: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    health: int = 404
    models: list[str] = field(default_factory=lambda: ["helper"])
    lora: int = 200
    asked: list[Json] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    loras: dict[str, str] = field(default_factory=dict)
    left: int = 0

    def api(self) -> fastapi.FastAPI:
        api = fastapi.FastAPI()

        @api.post("/v1/completions")
        async def completions(request: fastapi.Request) -> Response:
            self.asked.append(await request.json())
            self.keys.add(request.headers.get("authorization"))
            if self.status != 200:
                return JSONResponse({"error": {"message": "scripted"}}, self.status, self.headers)
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        @api.get("/v1/models")
        async def models() -> Json:
            return {"data": [{"id": name} for name in [*self.models, *self.loras]]}

        @api.get("/health")
        async def health() -> Response:
            return Response(status_code=self.health)

        @api.post("/v1/load_lora_adapter")
        async def load(body: Json) -> Response:
            if self.lora == 200:
                self.loras[body["lora_name"]] = body["lora_path"]
            return JSONResponse({"error": {"message": "rank 128 is too large"}}, self.lora)

        @api.post("/v1/unload_lora_adapter")
        async def unload(body: Json) -> Response:
            return Response(status_code=200 if self.loras.pop(body["lora_name"], None) else 404)

        return api

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            for event in self.events:
                if event is CUT:
                    raise RuntimeError("scripted cut")
                while event in (SILENCE, ENDLESS):
                    await asyncio.sleep(0.02)
                    if event is ENDLESS:
                        yield sse(says("more "))
                yield event if isinstance(event, bytes) else sse(event)
        finally:
            self.left += 1


def sse(event: Json) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def says(text: str, finish: str | None = None, **more: Any) -> Json:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory)


@pytest.fixture
def scripted() -> Upstream:
    return Upstream()


async def collect(engine: Engine, request: GenRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(request)]


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def tokens(events: list[TokenEvent]) -> list[int]:
    return [i for event in events for i in event.token_ids]


def in_front_of(upstream: Upstream, tokenizer: Any, use: Callable[[UpstreamEngine], Awaitable[T]], **options: Any) -> T:
    """Run `use` with an engine that forwards to the scripted server."""

    async def body() -> T:
        async with listening(upstream.api()) as url:
            engine = UpstreamEngine(url, "helper", tokenizer, **options)
            await engine.start()
            try:
                return await asyncio.wait_for(use(engine), timeout=30)
            finally:
                await engine.stop()

    return asyncio.run(body())


def answer(upstream: Upstream, tokenizer: Any, request: GenRequest | None = None, **options: Any) -> list[TokenEvent]:
    return in_front_of(upstream, tokenizer, lambda engine: collect(engine, request or GenRequest([5], 9)), **options)


# --- another bco ------------------------------------------------------------------------------------------------------


def test_another_bco_gives_the_same_answer(directory: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Its text and its end; the token ids are those of the text."""
    ids = tokenizer("What is the capital of France?")["input_ids"]

    async def body() -> None:
        engine = HFEngine(directory, context_window=512)
        await engine.start()
        async with listening(api_over(engine, directory, tmp_path)) as url:
            upstream = UpstreamEngine(f"{url}/v1/", "helper/3", tokenizer)
            await upstream.start()
            assert (await upstream.health()).ok
            whole = text(await collect(engine, GenRequest(ids, 30, temperature=0.0)))
            for fields in ({}, {"stop": (whole[5:8],)}):
                request = GenRequest(ids, 30, temperature=0.0, **fields)
                direct, there = await collect(engine, request), await collect(upstream, request)
                assert text(there) == text(direct)
                assert [e.finish_reason for e in there if e.finish_reason] == [direct[-1].finish_reason]
                assert there[-1].ended == direct[-1].ended
                assert tokenizer.decode(tokens(there), skip_special_tokens=True) == text(direct)
            with pytest.raises(RequestRefusedError, match="tokens"):
                await collect(upstream, GenRequest([5] * 600, 5))
            await upstream.stop()
        await engine.stop()

    asyncio.run(body())


def test_routes_ids_and_log_stay_ours(directory: Path, tokenizer: Any, tmp_path: Path, scripted: Upstream) -> None:
    scripted.events = [says("Hel"), says("lo", "stop"), DONE]

    async def use(engine: UpstreamEngine) -> None:
        async with listening(api_over(engine, directory, tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
            body = {"model": "helper", "messages": [{"role": "user", "content": "Hi"}]}
            reply = (await client.post("/v1/chat/completions", json=body)).json()
            assert (reply["model"], reply["choices"][0]["message"]["content"]) == ("helper/3", "Hello")
            row = FeedbackLog.open(tmp_path).get_completion(reply["id"])
            assert row.choices[0].token_ids == [*tokenizer("Hello")["input_ids"], tokenizer.eos_token_id]
            scripted.status = 429
            refusal = await client.post("/v1/chat/completions", json=body)
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "overloaded")

    in_front_of(scripted, tokenizer, use)


def api_over(engine: Engine, directory: Path, storage: Path) -> fastapi.FastAPI:
    args = ServeArgs(model_id="helper/3", model_dir=directory, storage=storage)
    catalog = FixedCatalog(Target(describe(args), load_tokenizer(directory), engine))
    return create_api(catalog, FeedbackLog.open(storage))


# --- what is asked and what comes back --------------------------------------------------------------------------------


def test_the_request_in_openais_words(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [says("x", "length"), DONE]
    answer(scripted, tokenizer, GenRequest([5, 6], 9, 0.5, 0.9, 7, seed=3, stop=("x", "y"), logprobs=0))
    answer(scripted, tokenizer, GenRequest([5, 6], 9))
    full, bare = scripted.asked
    assert bare == {
        "model": "helper", "prompt": [5, 6], "max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "stream": True,
        "return_token_ids": True,
    }  # fmt: skip
    assert full == bare | {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop": ["x", "y"], "logprobs": 0,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "stop", "ended"),
    [
        ({"stop_reason": None}, ("x",), True),  # vLLM: the end token
        ({"stop_reason": 7}, (), True),  # another one of the generation config
        ({"stop_reason": "x"}, ("x",), False),
        ({"matched_stop": 2}, ("x",), True),  # SGLang
        ({"matched_stop": "x"}, ("x",), False),
        ({}, (), True),  # who does not say: no stop string could have been it
        ({}, ("x",), False),
    ],
)
def test_an_end_token_is_told_from_a_stop_string(
    scripted: Upstream, tokenizer: Any, more: Json, stop: tuple[str, ...], ended: bool
) -> None:
    scripted.events = [says("Fine"), says("", "stop", **more), DONE]
    last = answer(scripted, tokenizer, GenRequest([5], 9, stop=stop))[-1]
    assert (last.finish_reason, last.ended) == ("stop", ended)
    assert (last.token_ids[-1] == tokenizer.eos_token_id) == ended


def test_token_ids_are_the_servers_where_it_says_them(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [says("Fi", token_ids=[41, 42]), says("ne", "stop", token_ids=[43, 2], stop_reason=None), DONE]
    events = answer(scripted, tokenizer)
    assert [(event.token_ids, event.text) for event in events] == [([41, 42], "Fi"), ([43, 2], "ne")]
    assert events[-1].ended


def test_what_comes_with_the_end_is_one_event_with_it(scripted: Upstream, tokenizer: Any) -> None:
    """So that whoever shows log-probabilities can leave out the end token's."""
    said = {"tokens": ["token_id:41", "token_id:2"], "token_logprobs": [-0.5, -0.1], "top_logprobs": [{}, {}]}
    scripted.events = [says("F"), says("ine", "stop", token_ids=[41, 2], logprobs=said, stop_reason=None), DONE]
    *_, last = answer(scripted, tokenizer, GenRequest([5], 9, logprobs=0))
    assert (last.text, last.token_ids, last.ended, len(last.logprobs)) == ("ine", [41, 2], True, 2)


def test_logprobs(scripted: Upstream, tokenizer: Any) -> None:
    table = {"token_id:9": -2.0, "token_id:41": -0.5}
    said = {"tokens": ["token_id:41"], "token_logprobs": [-0.5], "top_logprobs": [table], "text_offset": [0]}
    scripted.events = [says("F", "length", logprobs=said), DONE]
    events = answer(scripted, tokenizer, GenRequest([5], 9, logprobs=2))
    assert events[0].logprobs == [TokenLogprob(41, -0.5, [(41, -0.5), (9, -2.0)])]
    assert tokens(events) == [41]
    scripted.events = [says("F", "length", logprobs=said | {"tokens": ["F"]}), DONE]
    with pytest.raises(RequestRefusedError, match="token ids"):
        answer(scripted, tokenizer, GenRequest([5], 9, logprobs=2))


def test_events_are_split_at_newlines_only(scripted: Upstream, tokenizer: Any) -> None:
    """JSON may hold U+2028 as it is, and a network packet may end within a character."""
    stream = sse(says("a\u2028b\u0085é")) + b": ping\r\n\r\n" + sse({"choices": [], "usage": {}})
    pieces = [bytes([byte]) for byte in stream]
    scripted.events = [*pieces, says("", "stop"), DONE]
    assert text(answer(scripted, tokenizer)) == "a\u2028b\u0085é"


# --- an upstream that misbehaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRefusedError), (422, RequestRefusedError), (408, DeadlineError), (429, EngineOverloadedError),
        (401, EngineDeadError), (404, EngineDeadError), (500, EngineDeadError), (503, EngineDeadError),
    ],
)  # fmt: skip
def test_statuses(scripted: Upstream, tokenizer: Any, status: int, error: type[Exception]) -> None:
    scripted.status, scripted.headers = status, {"retry-after": "7"}
    with pytest.raises(error, match=r"scripted \(retry after 7 s\)"):
        answer(scripted, tokenizer)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"message": "scripted", "code": 400}, RequestRefusedError),
        ({"message": "scripted", "code": 500}, EngineDeadError),
        ({"message": "scripted", "code": "overloaded", "type": "rate_limit_error"}, EngineOverloadedError),
        ({"message": "scripted", "code": "request_refused", "type": "invalid_request_error"}, RequestRefusedError),
        ({"message": "scripted", "code": "engine_unavailable", "type": "server_error"}, EngineDeadError),
        ("scripted", EngineDeadError),
    ],
)
def test_errors_in_the_stream(scripted: Upstream, tokenizer: Any, said: Any, error: type[Exception]) -> None:
    scripted.events = [says("so far"), {"error": said}, DONE]
    with pytest.raises(error, match="scripted"):
        answer(scripted, tokenizer)


@pytest.mark.parametrize(
    "events",
    [
        [says("so far"), CUT],
        [says("so far"), DONE],
        [says("so far")],
        [says("", "abort"), DONE],
        [b"data: no json\n\n"],
        [b"data: 3\n\n"],
        [says("so far"), SILENCE],
    ],
    ids=["cut", "no reason", "no end", "aborted", "no json", "no object", "silence"],
)
def test_broken_answers(scripted: Upstream, tokenizer: Any, events: list[Any]) -> None:
    scripted.events = events
    with pytest.raises(EngineDeadError):
        answer(scripted, tokenizer, silence_seconds=0.3)


def test_a_server_that_is_gone(tokenizer: Any) -> None:
    async def body() -> None:
        async with listening(Upstream().api()) as url:
            engine = UpstreamEngine(url, "helper", tokenizer)
            await engine.start()
        with pytest.raises(EngineDeadError, match="cannot be reached"):
            await collect(engine, GenRequest([5], 9))
        health = await engine.health()
        assert not health.ok
        assert url in health.detail
        await engine.stop()
        with pytest.raises(ModelError):
            await UpstreamEngine(url, "helper", tokenizer).start()

    asyncio.run(body())


def test_health_is_the_servers(scripted: Upstream, tokenizer: Any) -> None:
    async def use(engine: UpstreamEngine) -> list[bool]:
        found = []
        for scripted.health in (404, 200, 503):
            found.append((await engine.health()).ok)
        return found

    assert in_front_of(scripted, tokenizer, use) == [True, True, False]


def test_a_model_it_does_not_serve(scripted: Upstream, tokenizer: Any) -> None:
    scripted.models = ["other/1"]
    with pytest.raises(ModelError, match=r"helper.*other/1"):
        answer(scripted, tokenizer)


# --- cancelling, deadlines, overload ----------------------------------------------------------------------------------


def test_closing_the_stream_hangs_up(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [ENDLESS]

    async def use(engine: UpstreamEngine) -> None:
        stream = engine.generate(GenRequest([5], 9))
        await anext(stream)
        assert (await engine.load()).running == 1
        await stream.aclose()
        assert (await engine.load()).running == 0
        while not scripted.left:
            await asyncio.sleep(0.02)

    in_front_of(scripted, tokenizer, use)


def test_a_deadline_hangs_up(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [SILENCE]

    async def use(engine: UpstreamEngine) -> None:
        with pytest.raises(DeadlineError):
            await collect(engine, GenRequest([5], 9, deadline=time.time() + 1))
        while not scripted.left:
            await asyncio.sleep(0.02)

    in_front_of(scripted, tokenizer, use)


def test_so_many_at_once_and_no_more(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [says("x", "length"), DONE]

    async def use(engine: UpstreamEngine) -> list[Any]:
        requests = [collect(engine, GenRequest([5], 9)) for _ in range(5)]
        return list(await asyncio.gather(*requests, return_exceptions=True))

    results = in_front_of(scripted, tokenizer, use, max_in_flight=3)
    assert sum(isinstance(result, EngineOverloadedError) for result in results) == 2


def test_stopping_ends_requests_in_flight(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [says("x"), SILENCE]

    async def use(engine: UpstreamEngine) -> None:
        waiting = asyncio.create_task(collect(engine, GenRequest([5], 9)))
        while not (await engine.load()).running:
            await asyncio.sleep(0.01)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await waiting
        with pytest.raises(EngineDeadError):
            await collect(engine, GenRequest([5], 9))

    in_front_of(scripted, tokenizer, use)


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_is_not_told(
    scripted: Upstream, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match="UPSTREAM_KEY"):
        answer(scripted, tokenizer, api_key_variable="UPSTREAM_KEY")
    monkeypatch.setenv("UPSTREAM_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    scripted.events = [says("x", "length"), DONE]
    answer(scripted, tokenizer, api_key_variable="UPSTREAM_KEY")
    assert scripted.keys == {"Bearer sk-secret"}
    scripted.status = 401
    with pytest.raises(EngineDeadError) as refused:
        answer(scripted, tokenizer, api_key_variable="UPSTREAM_KEY")
    assert "sk-secret" not in caplog.text + str(refused.value)


# --- adapters ---------------------------------------------------------------------------------------------------------

LORA = Adapter("helper/4", Path("/adapters/4"))


def test_an_adapter_is_a_model_of_the_server(scripted: Upstream, tokenizer: Any) -> None:
    scripted.events = [says("x", "length"), DONE]

    async def use(engine: UpstreamEngine) -> None:
        await collect(engine, GenRequest([5], 9, adapter=LORA))
        assert scripted.asked[-1]["model"] == "helper/4"
        assert scripted.loras == {"helper/4": "/adapters/4"}
        assert (await engine.load()).adapters == ("helper/4",)
        await engine.unload_adapter("helper/4")
        assert scripted.loras == {}

    in_front_of(scripted, tokenizer, use)


def test_an_adapter_that_was_there_before_stays(scripted: Upstream, tokenizer: Any) -> None:
    scripted.loras = {"helper/4": "elsewhere"}

    async def use(engine: UpstreamEngine) -> None:
        await engine.load_adapter(LORA)
        await engine.unload_adapter("helper/4")
        assert scripted.loras == {"helper/4": "elsewhere"}

    in_front_of(scripted, tokenizer, use)


@pytest.mark.parametrize(("status", "why"), [(404, "--enable-lora"), (400, "rank 128"), (500, "rank 128")])
def test_an_adapter_that_it_cannot_load(scripted: Upstream, tokenizer: Any, status: int, why: str) -> None:
    scripted.lora = status

    async def use(engine: UpstreamEngine) -> None:
        with pytest.raises(ModelError, match=why):
            await engine.load_adapter(LORA)
        with pytest.raises(RequestRefusedError, match=why):
            await collect(engine, GenRequest([5], 9, adapter=LORA))

    in_front_of(scripted, tokenizer, use)
