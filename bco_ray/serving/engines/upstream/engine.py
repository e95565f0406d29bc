"""Forwards generation to any OpenAI-compatible server: vLLM, SGLang, another bco. Routes, ids, log and votes stay here.

Adapters are model names there. Those that it does not list are loaded with vLLM's `/v1/load_lora_adapter`, which reads
the same directory, so the server must see it under the same path.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass

import httpx

from bco_ray.errors import ModelError
from bco_ray.serving.engines.deadlines import before
from bco_ray.serving.engines.loaded_adapters import LoadedAdapters
from bco_ray.serving.engines.protocol import (
    Adapter,
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    Health,
    Load,
    RequestRefusedError,
    TokenEvent,
)
from bco_ray.serving.engines.upstream.reply import Reply, completion_body, message_of, refused, server_sent
from bco_ray.telemetry import logger
from bco_ray.text import Tokenizer

_ENABLE = "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or load it there under this name."
_CHECK_SECONDS = 10.0


@dataclass(eq=False)
class _Flight:
    """A request that is with the upstream; `answering` once its first token has come."""

    answering: bool = False


class UpstreamEngine:
    """Asks the server at `base_url` for `model`; `tokenizer` must be that model's.

    `api_key_variable` names the environment variable that holds its key. At most `max_in_flight` requests are there at
    once. A server that says nothing for `silence_seconds`, be it before the first token, counts as dead.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        api_key_variable: str | None = None,
        max_in_flight: int = 256,
        max_adapters: int = 64,
        silence_seconds: float = 300.0,
    ) -> None:
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._tokenizer = tokenizer
        self._api_key_variable = api_key_variable
        self._max_in_flight = max_in_flight
        self._silence_seconds = silence_seconds
        self._adapters = LoadedAdapters(self._load_lora, self._unload_lora, limit=max_adapters)
        self._flights: list[_Flight] = []
        self._prompt_tokens = 0
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Connect. Raises ModelError if the server cannot be reached or does not serve the model."""
        self._client = httpx.AsyncClient(
            base_url=self._base_url,
            headers=self._headers(),
            timeout=httpx.Timeout(self._silence_seconds, connect=_CHECK_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        models = await self._models()
        if self._model not in models:
            raise ModelError(f"{self._base_url} does not serve {self._model!r} but: {', '.join(models) or 'nothing'}.")

    async def stop(self) -> None:
        """Hang up."""
        client, self._client = self._client, None
        if client:
            await client.aclose()

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """See `Engine.generate`."""
        if len(self._flights) >= self._max_in_flight:
            raise EngineOverloadedError(f"{len(self._flights)} requests are with the upstream already")
        flight = _Flight()
        self._flights.append(flight)
        self._prompt_tokens += len(request.token_ids)
        try:
            async with aclosing(before(request.deadline, self._events(request))) as events:
                async for event in events:
                    flight.answering = True
                    yield event
        finally:
            self._flights.remove(flight)

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `Engine.load_adapter`."""
        await self._adapters.load(adapter)

    async def unload_adapter(self, name: str) -> None:
        """See `Engine.unload_adapter`."""
        await self._adapters.unload(name)

    async def health(self) -> Health:
        """What `/health` says, or whether models are listed where there is no such route."""
        try:
            with _unreachable_is_dead(self._base_url):
                answer = await self._http.get("/health", timeout=_CHECK_SECONDS)
                if answer.status_code == 404:
                    answer = await self._http.get("/v1/models", timeout=_CHECK_SECONDS)
        except EngineDeadError as error:
            return Health(False, str(error))
        return Health(not answer.is_error, f"the upstream's health: {answer.status_code}" if answer.is_error else "")

    async def load(self) -> Load:
        """See `Engine.load`; of our own requests only, and without a cache, which the server does not tell about."""
        running = sum(flight.answering for flight in self._flights)
        waiting = len(self._flights) - running
        return Load(running, waiting, adapters=self._adapters.names, prompt_tokens=self._prompt_tokens)

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineDeadError("not connected to the upstream")
        return self._client

    def _headers(self) -> dict[str, str]:
        if self._api_key_variable is None:
            return {}
        key = os.environ.get(self._api_key_variable)
        if not key:
            raise ModelError(f"The environment variable {self._api_key_variable} does not hold the upstream's API key.")
        return {"authorization": f"Bearer {key}"}

    async def _events(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        async with AsyncExitStack() as stack:
            model = await self._model_of(request, stack)
            stack.enter_context(_unreachable_is_dead(self._base_url))
            posted = self._http.stream("POST", "/v1/completions", json=completion_body(model, request))
            response = await stack.enter_async_context(posted)
            if response.is_error:
                raise _refusal(response, await response.aread())
            reply = Reply(request, self._tokenizer)
            chunks = await stack.enter_async_context(aclosing(server_sent(response.aiter_bytes())))
            async for chunk in chunks:
                if event := reply.read(chunk):
                    yield event
            yield reply.end()

    async def _model_of(self, request: GenRequest, stack: AsyncExitStack) -> str:
        if request.adapter is None:
            return self._model
        try:
            await stack.enter_async_context(self._adapters.lease(request.adapter))
        except ModelError as error:
            raise RequestRefusedError(str(error)) from error
        return request.adapter.name

    async def _models(self) -> list[str]:
        try:
            answer = await self._http.get("/v1/models", timeout=_CHECK_SECONDS)
            answer.raise_for_status()
            return [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._base_url} does not list its models: {error or type(error).__name__}") from None

    async def _load_lora(self, adapter: Adapter) -> str | None:
        """The name that is ours to unload; None if the server had it already."""
        if adapter.name in await self._models():
            return None
        body = {"lora_name": adapter.name, "lora_path": str(adapter.directory)}
        try:
            answer = await self._http.post("/v1/load_lora_adapter", json=body)
        except httpx.HTTPError as error:
            raise ModelError(f"{adapter.name}: {self._base_url} cannot load it: {error!r}") from error
        if answer.status_code == 404:
            raise ModelError(f"{adapter.name}: {self._base_url} loads no adapters while it runs. {_ENABLE}")
        if answer.is_error:
            raise ModelError(f"{adapter.name}: {self._base_url} cannot load it: {message_of(answer.content)}")
        return adapter.name

    async def _unload_lora(self, name: str | None) -> None:
        if name is None or self._client is None:
            return
        try:
            answer = await self._client.post("/v1/unload_lora_adapter", json={"lora_name": name})
            if answer.is_error and answer.status_code != 404:
                logger.warning("%s: the upstream did not unload it: %s", name, message_of(answer.content))
        except httpx.HTTPError as error:
            logger.warning("%s: the upstream did not unload it: %r", name, error)


def _refusal(response: httpx.Response, body: bytes) -> Exception:
    after = response.headers.get("retry-after")
    return refused(response.status_code, message_of(body) + (f" (retry after {after} s)" if after else ""))


@contextmanager
def _unreachable_is_dead(base_url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise EngineDeadError(f"{base_url} said nothing for too long ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise EngineDeadError(f"{base_url} cannot be reached: {error or type(error).__name__}") from error
