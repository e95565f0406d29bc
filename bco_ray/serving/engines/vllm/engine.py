"""vLLM inside our process: the `AsyncLLM` of vLLM 0.29, which the extra `[vllm]` installs and which needs a GPU.

vLLM batches and samples. Text, stop strings and where an answer ends are ours (`Answer`), so that text, token ids and
`ended` are those of the embedded engine. What differs: the same seed gives the same answer only in the same company
(its kernels are not batch-invariant), and temperatures below 0.01 count as 0.01. Its queue knows no shares, so they
become priorities (`FairTags`), and no share may hold more places than its equal part.

On a machine with a GPU:

    pip install 'bco-ray[vllm]' && BCO_TEST_VLLM=1 pytest tests/serving/test_vllm_engine.py
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bco_ray.errors import ModelError
from bco_ray.serving.args import base_directory
from bco_ray.serving.engines.answer import Answer
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
from bco_ray.serving.engines.text_stream import TextStream
from bco_ray.serving.engines.vllm.door import add_lora, errors_as_ours, generate, start_vllm, token_logprobs
from bco_ray.serving.engines.vllm.fair_tags import FairTags
from bco_ray.storage.local_copies import local_copy
from bco_ray.text import end_of_turn_ids, load_tokenizer


@dataclass
class _Flight:
    """A request on its way. `kv_tokens` 0: vLLM has not started it."""

    id: str
    request: GenRequest
    answer: Answer
    tag: int
    kv_tokens: int = 0


class VllmEngine:
    """Serves the model (or the adapter on its base) in `directory`. `options`: more of vLLM's AsyncEngineArgs."""

    def __init__(
        self,
        directory: Path,
        *,
        context_window: int,
        max_batch: int = 128,
        max_waiting: int = 512,
        max_adapters: int = 8,
        max_adapter_rank: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._directory = directory
        self._context_window = context_window
        self._max_batch = max_batch
        self._places = max_batch + max_waiting
        self._max_adapter_rank = max_adapter_rank
        self._options = options or {}
        self._base = directory
        self._own_lora: Any = None
        self._max_adapters = max_adapters
        self._adapters = LoadedAdapters(self._add_lora, self._remove_lora, limit=max_adapters)
        self._lora_numbers = itertools.count(1)
        self._numbers = itertools.count()
        self._flights: dict[str, _Flight] = {}
        self._tags = FairTags()
        self._prompt_tokens = self._cached_tokens = self._kv_capacity = 0
        self._llm: Any = None
        self._closed = True

    async def start(self) -> None:
        """Start vLLM and read the weights. Raises ModelError."""
        self._directory = await asyncio.to_thread(local_copy, self._directory)
        self._base = await asyncio.to_thread(local_copy, base_directory(self._directory))
        has_own = (self._directory / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(self._directory if has_own else self._base)
        self._decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._ends = end_of_turn_ids(tokenizer, self._base)
        self._llm = start_vllm(self._engine_args())
        self._vocabulary = int(self._llm.model_config.get_vocab_size())
        cache = self._llm.vllm_config.cache_config
        self._kv_capacity = (cache.num_gpu_blocks or 0) * cache.block_size
        if self._base != self._directory:
            self._own_lora = await self._add_lora(Adapter(str(self._directory), self._directory))
        self._closed = False

    async def stop(self) -> None:
        """Abort what runs, then end vLLM's processes."""
        self._closed = True
        if self._llm:
            await self._llm.abort(list(self._flights))  # each ends with finish reason `abort`
            self._llm.shutdown()

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """See `Engine.generate`."""
        flight = self._admit(request)
        try:
            async with aclosing(before(request.deadline, self._events(flight))) as events:
                async for event in events:
                    yield event
        finally:
            del self._flights[flight.id]

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `Engine.load_adapter`."""
        await self._adapters.load(adapter)

    async def unload_adapter(self, name: str) -> None:
        """See `Engine.unload_adapter`."""
        await self._adapters.unload(name)

    async def health(self) -> Health:
        """Dead when vLLM's own process is."""
        if self._closed:
            return Health(False, "vLLM is not running")
        return Health(False, f"vLLM has died: {self._llm.dead_error}") if self._llm.errored else Health(True)

    async def load(self) -> Load:
        """See `Engine.load`."""
        running = [flight.kv_tokens for flight in self._flights.values() if flight.kv_tokens]
        return Load(
            running=len(running),
            waiting=len(self._flights) - len(running),
            kv_tokens=sum(running),
            kv_capacity=self._kv_capacity,
            adapters=self._adapters.names,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
        )

    def _engine_args(self) -> dict[str, Any]:
        adapters = self._max_adapters + (self._base != self._directory)
        fields = {
            "model": str(self._base),
            "max_model_len": self._context_window,
            "max_num_seqs": self._max_batch,
            "scheduling_policy": "priority",
            "logprobs_mode": "raw_logprobs",  # before temperature and filters
            "enable_lora": adapters > 0,
            "max_loras": max(1, adapters),
            "max_lora_rank": self._max_adapter_rank,
        }
        return fields | dict(self._options)

    def _admit(self, request: GenRequest) -> _Flight:
        if self._closed or self._llm.errored:
            raise EngineDeadError("vLLM is not running")
        self._check(request)
        shares = [flight.request.share for flight in self._flights.values()]
        if shares.count(request.share) >= self._places // len({*shares, request.share}):
            raise EngineOverloadedError(f"{len(shares)} requests run or wait already")
        answer = Answer(TextStream(self._decode, request.stop), self._ends, request.max_new)
        flight = _Flight(f"bco-{next(self._numbers)}", request, answer, self._tags.tag(request.share))
        self._flights[flight.id] = flight
        return flight

    def _check(self, request: GenRequest) -> None:
        """vLLM would refuse these too, but not all of them, and some of them late."""
        ids = request.token_ids
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            raise RequestRefusedError("the prompt has no tokens, or ids outside the model's vocabulary")
        if request.max_new < 1 or len(ids) + request.max_new > self._context_window:
            raise RequestRefusedError(
                f"{len(ids)} prompt + {request.max_new} new tokens do not fit the context window of "
                f"{self._context_window} tokens"
            )

    async def _events(self, flight: _Flight) -> AsyncGenerator[TokenEvent]:
        request = flight.request
        async with self._weights(request.adapter) as lora:
            with errors_as_ours():
                outputs = generate(self._llm, request, self._ends, flight.id, lora=lora, priority=flight.tag)
                async with aclosing(outputs):  # closing it before its end aborts the request
                    async for output in outputs:
                        for event in self._read(flight, output):
                            yield event
                            if event.finish_reason:
                                return

    @asynccontextmanager
    async def _weights(self, adapter: Adapter | None) -> AsyncIterator[Any]:
        if adapter is None:
            yield self._own_lora
            return
        async with AsyncExitStack() as stack:
            try:
                lora = await stack.enter_async_context(self._adapters.lease(adapter))
            except ModelError as error:
                raise RequestRefusedError(str(error)) from error
            yield lora

    def _read(self, flight: _Flight, output: Any) -> Iterator[TokenEvent]:
        """The events of what vLLM says at once: mostly one token, more if we were slow to ask."""
        completion, cached = output.outputs[0], 0
        if not flight.kv_tokens:
            cached = output.num_cached_tokens or 0
            self._started(flight, cached)
        flight.kv_tokens += len(completion.token_ids)
        logprobs = token_logprobs(completion, flight.request.logprobs)
        for position, token in enumerate(completion.token_ids):
            yield flight.answer.add(token, logprobs[position : position + 1], 0 if position else cached)
        if completion.finish_reason == "abort":
            raise EngineDeadError("vLLM is stopping")
        if completion.finish_reason:  # we are asked for more only if the tokens so far do not end the answer
            raise RequestRefusedError(f"vLLM ended the answer: {completion.finish_reason}")

    def _started(self, flight: _Flight, cached: int) -> None:
        flight.kv_tokens = len(flight.request.token_ids)
        self._tags.started(flight.tag)
        self._prompt_tokens += flight.kv_tokens
        self._cached_tokens += cached

    async def _add_lora(self, adapter: Adapter) -> Any:
        """Numbers are never used twice, so nothing cached for an adapter is taken for another's."""
        here = replace(adapter, directory=await asyncio.to_thread(local_copy, adapter.directory))
        return await add_lora(self._llm, here, next(self._lora_numbers))

    async def _remove_lora(self, lora: Any) -> None:
        if not self._closed and not self._llm.errored:
            await self._llm.remove_lora(lora.lora_int_id)
