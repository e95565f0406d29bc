"""The embedded engine: any transformers causal LM, continuous batching, one thread.

Requests come in on event loops, the thread takes turns (see batcher), events go back through one outbox. What has to
happen between two steps (putting in an adapter) is handed to the thread as a call.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from bco_ray.errors import BcoError, ModelError
from bco_ray.models.generate import end_token_ids
from bco_ray.models.loading import base_of, load_frozen
from bco_ray.serving.engines.batching.adapters import Adapters
from bco_ray.serving.engines.batching.batcher import Batcher
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.batching.prefix_cache import block_keys
from bco_ray.serving.engines.batching.row import Outbox, Row
from bco_ray.serving.engines.batching.waiting import FairQueue
from bco_ray.serving.engines.protocol import (
    Adapter,
    DeadlineError,
    EngineDeadError,
    GenRequest,
    Health,
    Load,
    RequestRefusedError,
    TokenEvent,
)
from bco_ray.serving.engines.text_stream import TextStream
from bco_ray.storage.local_copies import local_copy
from bco_ray.telemetry import logger
from bco_ray.text import load_tokenizer

FAILURES_UNTIL_DEAD = 3
"""So many requests in a row that fail inside the model: no single request is to blame any more."""

_POLL_SECONDS = 0.2

Call = tuple[Callable[[], None], "Future[None]"]


class HFEngine:
    """Serves the model (or the adapter on its base) in `directory`, and adapters beside it.

    `kv_tokens`: rows x the longest of them that the running batch may hold (default: `max_batch` full windows); those
    whose prompts are being read are held once more meanwhile. `prefill_chunk`: prompt tokens read between two steps.
    `prefix_tokens`: how much of past prompts is remembered (default: as much as `kv_tokens`; 0: nothing).
    `stream_seconds`: after an event the tokens of so long come as one (0: one event per token): each event costs its
    way through processes and sockets, and nobody reads that fast.
    """

    def __init__(
        self,
        directory: Path,
        *,
        context_window: int,
        max_batch: int = 8,
        max_waiting: int = 64,
        threads: int = 1,
        device: str = "cpu",
        kv_tokens: int | None = None,
        prefill_chunk: int = 512,
        prefix_tokens: int | None = None,
        max_adapters: int = 8,
        stream_seconds: float = 0.0,
    ) -> None:
        self._directory = directory
        self._device = device
        self._context_window = context_window
        self._max_batch = max_batch
        self._threads = threads
        self._kv_tokens = kv_tokens or max_batch * context_window
        self._prefill_chunk = prefill_chunk
        self._prefix_tokens = self._kv_tokens if prefix_tokens is None else prefix_tokens
        self._max_adapters = max_adapters
        self._stream_seconds = stream_seconds
        self._waiting = FairQueue(max_waiting)
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._outbox = Outbox()
        self._wake = threading.Event()
        self._loading = asyncio.Lock()
        self._closed = True
        self._thread = threading.Thread(target=self._serve, name="hf-engine", daemon=True)

    async def start(self) -> None:
        """Read the weights and start the thread. Raises ModelError."""
        await asyncio.to_thread(self._load)
        self._closed = False
        self._thread.start()

    async def stop(self) -> None:
        """Let the running step end, fail what is in flight, join the thread."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, 60)

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """See `Engine.generate`."""
        self._check(request)
        async with self._adapter_of(request):
            row = self._enter(request)
            try:
                finished = False
                while not finished:
                    event = await self._heard(row)
                    finished = event.finish_reason is not None
                    yield event
                    if self._stream_seconds and not finished:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(row.ended.wait(), self._stream_seconds)
            finally:
                row.cancelled = True

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `Engine.load_adapter`."""
        self._check_open()
        known = self._adapters.pin(adapter.name)
        try:
            if not known:
                await self._put_in(adapter)
        finally:
            self._adapters.unpin(adapter.name)

    async def unload_adapter(self, name: str) -> None:
        """See `Engine.unload_adapter`."""
        self._check_open()
        self._adapters.remove_later(name)
        self._wake.set()

    async def health(self) -> Health:
        """Dead when the thread is gone or the model fails request after request."""
        if self._closed or not self._thread.is_alive():
            return Health(False, "the generation thread has ended")
        if self._batcher.failures >= FAILURES_UNTIL_DEAD:
            return Health(False, f"the last {self._batcher.failures} requests failed inside the model")
        return Health(True)

    async def load(self) -> Load:
        """See `Engine.load`."""
        if self._closed:
            return Load(0, len(self._waiting))
        b = self._batcher
        return Load(
            running=len(b.rows),
            waiting=len(self._waiting),
            kv_tokens=b.held_tokens,
            kv_capacity=self._kv_tokens,
            adapters=self._adapters.names,
            prompt_tokens=b.prompt_tokens,
            cached_tokens=b.cached_tokens,
        )

    def _load(self) -> None:
        on_cpu = self._device == "cpu"
        lm = load_frozen(self._directory, dtype=torch.float32 if on_cpu else torch.bfloat16).to(self._device)
        has_own = (self._directory / "tokenizer_config.json").is_file()
        source = self._directory if has_own else base_of(self._directory)
        tokenizer = load_tokenizer(local_copy(source, weights=False))
        self._decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._ends = end_token_ids(lm, tokenizer)
        self._adapters = Adapters(lm, self._directory, self._max_adapters)
        self._network = Network(self._adapters.lm)
        self._batcher = Batcher(
            self._network,
            self._adapters,
            self._waiting,
            max_batch=self._max_batch,
            kv_tokens=self._kv_tokens,
            prefill_chunk=self._prefill_chunk,
            prefix_tokens=self._prefix_tokens,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDeadError("the engine is not running")

    def _check(self, request: GenRequest) -> None:
        """Raises what can be known before an adapter is loaded and a slot is waited for."""
        self._check_open()
        ids = request.token_ids
        if not ids or min(ids) < 0 or max(ids) >= self._network.vocabulary:
            raise RequestRefusedError("the prompt has no tokens, or ids outside the model's vocabulary")
        room = min(self._context_window, self._kv_tokens)
        if request.max_new < 1 or len(ids) + request.max_new > room:
            raise RequestRefusedError(
                f"{len(ids)} prompt + {request.max_new} new tokens do not fit the context window of {room} tokens"
            )

    def _enter(self, request: GenRequest) -> Row:
        row = Row(request, TextStream(self._decode, request.stop), self._ends, self._outbox)
        if self._prefix_tokens and self._network.free_columns:
            row.keys = block_keys(row.ids, row.adapter)
        self._waiting.put(row)
        self._wake.set()
        self._check_open()  # it may have closed meanwhile, and failed those who waited before us
        return row

    async def _heard(self, row: Row) -> TokenEvent:
        """The next event, and with it those that have come meanwhile. Raises what the row failed with."""
        event = await row.events.get()
        if isinstance(event, Exception):
            raise event
        while self._stream_seconds and not row.events.empty():
            later = row.events.get_nowait()
            if isinstance(later, Exception):  # the last thing it hears
                row.events.put_nowait(later)
                break
            event += later
        return event

    @asynccontextmanager
    async def _adapter_of(self, request: GenRequest) -> AsyncIterator[None]:
        """In here the request's adapter is loaded and stays so."""
        if request.adapter is None:
            yield
            return
        known = self._adapters.pin(request.adapter.name)
        try:
            if not known:
                await self._put_in_for(request, request.adapter)
            yield
        finally:
            self._adapters.unpin(request.adapter.name)

    async def _put_in_for(self, request: GenRequest, adapter: Adapter) -> None:
        left = None if request.deadline is None else max(0.0, request.deadline - time.time())
        try:
            async with asyncio.timeout(left):
                await self._put_in(adapter)
        except TimeoutError:
            raise DeadlineError("the adapter was not loaded by the request's deadline") from None
        except ModelError as error:
            raise RequestRefusedError(str(error)) from None

    async def _put_in(self, adapter: Adapter) -> None:
        async with self._loading:
            if adapter.name not in self._adapters.names:
                files = await asyncio.to_thread(self._adapters.read, adapter)
                await self._between_steps(lambda: self._adapters.add(files, self._network, self._busy()))

    async def _between_steps(self, work: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._calls.put((work, done))
        self._wake.set()
        if self._closed:  # too late for the thread to see it, perhaps
            raise EngineDeadError("the engine has stopped")
        await asyncio.wrap_future(done)

    def _busy(self) -> set[str | None]:
        return {row.adapter for row in self._batcher.rows}

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while not self._closed:
                self._answer_calls()
                with torch.inference_mode():
                    had_work = self._batcher.turn()
                self._outbox.flush()
                if not had_work and self._wake.wait(_POLL_SECONDS):
                    self._wake.clear()
        except Exception:
            logger.exception("the generation thread died")
            raise
        finally:
            self._closed = True
            self._fail_all()

    def _answer_calls(self) -> None:
        self._adapters.sweep(self._busy())
        while not self._calls.empty():
            work, done = self._calls.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                work()
            except Exception as error:  # noqa: BLE001  somebody's adapter; the engine goes on
                known = isinstance(error, BcoError)
                done.set_exception(error if known else ModelError(f"{type(error).__name__}: {error}"))
            else:
                done.set_result(None)

    def _fail_all(self) -> None:
        dead = EngineDeadError("the engine has stopped")
        for row in [*self._batcher.rows, *self._waiting.sweep(lambda _: True)]:
            row.fail(dead)
        self._outbox.flush()
        while not self._calls.empty():
            _, done = self._calls.get()
            if done.set_running_or_notify_cancel():
                done.set_exception(dead)
