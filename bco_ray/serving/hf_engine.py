"""The embedded engine: any transformers causal LM, dense batches, one thread.

The thread takes what waits (at most `max_batch`), runs it to the end, takes again. Rows leave a batch as they finish;
a continuous batcher, where others join meanwhile, can come later behind the same protocol.

B: rows, T: new tokens, S: tokens so far, V: vocabulary.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bco_ray.models.generate import end_token_ids
from bco_ray.models.loading import base_of, load_frozen
from bco_ray.serving.engine import (
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    Health,
    Load,
    RequestRefusedError,
    TokenEvent,
)
from bco_ray.serving.row import Row
from bco_ray.serving.text_stream import TextStream
from bco_ray.telemetry import logger
from bco_ray.text import load_tokenizer

FAILURES_UNTIL_DEAD = 3
"""So many requests in a row that fail inside the model: no single request is to blame any more."""

_POLL_SECONDS = 0.2


class HFEngine:
    """Serves the model (or the adapter on its base) in `directory`."""

    def __init__(
        self,
        directory: Path,
        *,
        context_window: int,
        max_batch: int = 8,
        max_waiting: int = 64,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._directory = directory
        self._device = device
        self._context_window = context_window
        self._max_batch = max_batch
        self._threads = threads
        self._waiting: queue.Queue[Row] = queue.Queue(max_waiting)
        self._running: list[Row] = []
        self._failures = 0
        self._closed = True
        self._thread = threading.Thread(target=self._serve, name="hf-engine", daemon=True)

    async def start(self) -> None:
        """Read the weights and start the thread. Raises ModelError."""
        await asyncio.to_thread(self._load)
        self._closed = False
        self._thread.start()

    async def stop(self) -> None:
        """Let the running step end, fail what waits, join the thread."""
        self._closed = True
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, 60)

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """See `Engine.generate`."""
        row = self._admit(request)
        try:
            finished = False
            while not finished:
                event = await row.events.get()
                if isinstance(event, Exception):
                    raise event
                finished = event.finish_reason is not None
                yield event
        finally:
            row.cancelled = True

    async def health(self) -> Health:
        """Dead when the thread is gone or the model fails request after request."""
        if self._closed or not self._thread.is_alive():
            return Health(False, "the generation thread has ended")
        if self._failures >= FAILURES_UNTIL_DEAD:
            return Health(False, f"the last {self._failures} requests failed inside the model")
        return Health(True)

    async def load(self) -> Load:
        """See `Engine.load`."""
        return Load(running=len(self._running), waiting=self._waiting.qsize())

    def _load(self) -> None:
        on_cpu = self._device == "cpu"
        model = load_frozen(self._directory, dtype=torch.float32 if on_cpu else torch.bfloat16)
        self._model = model.to(self._device)
        has_own = (self._directory / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(self._directory if has_own else base_of(self._directory))
        self._decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._ends = end_token_ids(model, tokenizer)
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)

    def _admit(self, request: GenRequest) -> Row:
        if self._closed:
            raise EngineDeadError("the engine is not running")
        ids = request.token_ids
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            raise RequestRefusedError("the prompt has no tokens, or ids outside the model's vocabulary")
        if request.max_new < 1 or len(ids) + request.max_new > self._context_window:
            raise RequestRefusedError(
                f"{len(ids)} prompt + {request.max_new} new tokens do not fit the context window of "
                f"{self._context_window} tokens"
            )
        row = Row(request, TextStream(self._decode, request.stop), self._ends)
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            raise EngineOverloadedError(f"{self._waiting.maxsize} requests wait already") from None
        if self._closed:  # it closed meanwhile and may have emptied the queue before us
            raise EngineDeadError("the engine has stopped")
        return row

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while not self._closed:
                self._running = self._take()
                if self._running:
                    self._run(self._running)
        except Exception:
            logger.exception("the generation thread died")
            raise
        finally:
            self._closed = True
            self._fail_all()

    def _take(self) -> list[Row]:
        """The next batch, or nothing if nothing came for a moment."""
        try:
            rows = [self._waiting.get(timeout=_POLL_SECONDS)]
        except queue.Empty:
            return []
        while len(rows) < self._max_batch and not self._waiting.empty():
            rows.append(self._waiting.get_nowait())
        return [row for row in rows if not row.cancelled]

    def _run(self, rows: list[Row]) -> None:
        """Run a batch; if it fails as a whole, run its rows one by one so that only the guilty ones fail."""
        try:
            self._decode_batch(rows)
        except (RuntimeError, ValueError, IndexError) as error:
            unfinished = [row for row in rows if not row.done]
            if len(unfinished) > 1:
                for row in unfinished:
                    self._run([row])
            else:
                self._blame(unfinished, error)

    def _blame(self, rows: list[Row], error: Exception) -> None:
        logger.warning("a request failed inside the model: %s", error)
        self._failures += 1
        for row in rows:
            row.fail(RequestRefusedError(f"the model failed on this request: {error}"))

    @torch.inference_mode()
    def _decode_batch(self, rows: list[Row]) -> None:
        batch = DenseBatch(self._model, [row.ids for row in rows])
        while rows and not self._closed:
            logits_BV = batch.forward()
            likeliest_B = logits_BV.argmax(-1).tolist()
            kept = [b for b, row in enumerate(rows) if row.advance(logits_BV[b], likeliest_B[b])]
            rows = [rows[b] for b in kept]
            if rows:
                batch.keep(kept, [row.ids[-1] for row in rows])
            self._failures = 0

    def _fail_all(self) -> None:
        rows = list(self._running)
        while not self._waiting.empty():
            rows.append(self._waiting.get_nowait())
        for row in rows:
            row.fail(EngineDeadError("the engine has stopped"))


class DenseBatch:
    """Left-padded rows that step together: their KV cache, mask and the tokens not yet seen by the model."""

    def __init__(self, model: Any, rows: list[list[int]]) -> None:
        width = max(map(len, rows))
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self._new_BT = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
        self._mask_BS = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        self._cache = DynamicCache()

    def forward(self) -> Tensor:
        """Logits_BV of the next token."""
        positions_BT = (self._mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -self._new_BT.shape[1] :]
        optional = {"position_ids": positions_BT, "logits_to_keep": 1}
        out = self._model(
            input_ids=self._new_BT,
            attention_mask=self._mask_BS,
            past_key_values=self._cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        return torch.as_tensor(out.logits[:, -1])

    def keep(self, kept: list[int], tokens: list[int]) -> None:
        """Drop all rows but `kept`; `tokens` are their newest ones."""
        if len(kept) < len(self._mask_BS):
            index = torch.tensor(kept, device=self._mask_BS.device, dtype=torch.long)
            self._cache.batch_select_indices(index)
            self._mask_BS = self._mask_BS[index]
        self._mask_BS = torch.nn.functional.pad(self._mask_BS, (0, 1), value=1)
        self._new_BT = torch.tensor(tokens, device=self._mask_BS.device, dtype=torch.long)[:, None]
