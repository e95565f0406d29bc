"""One of our sides as a process: `python serving_side.py SIDE MODEL PORT MAX_BATCH`.

`ours` is the embedded engine behind the API on uvicorn, `naive` is `model.generate` one request at a time behind the
same API, `serve` is ours on Ray Serve as users get it. `bare` (no port) reads requests from standard input and writes
what it measured: the engine in a loop of its own, no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from serving_load import closed_loop
from serving_task import WINDOW, Ask

from bco_ray.models.loading import load_frozen
from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.answer import Answer
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import Adapter, Engine, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.engines.text_stream import TextStream
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.text import load_tokenizer

MODEL_ID = "bench/1"


class OneByOne:
    """`model.generate` as an Engine: greedy, one request after the other."""

    def __init__(self, directory: Path) -> None:
        self._model: Any = load_frozen(directory, dtype=torch.float32)
        self._tokenizer = load_tokenizer(directory)
        self._turn = asyncio.Lock()

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def load_adapter(self, adapter: Adapter) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        answer = Answer(TextStream(decode), frozenset([self._tokenizer.eos_token_id]), request.max_new)
        async with self._turn:
            tokens = Tokens()
            running = asyncio.create_task(asyncio.to_thread(self._run, request, tokens))
            while (token := await tokens.queue.get()) is not None:
                yield answer.add(token, [], 0)
            await running

    @torch.inference_mode()
    def _run(self, request: GenRequest, tokens: Tokens) -> None:
        ids_BT = torch.tensor([request.token_ids])
        mask_BT = torch.ones_like(ids_BT)
        limits = {"max_new_tokens": request.max_new, "do_sample": False}
        self._model.generate(input_ids=ids_BT, attention_mask=mask_BT, streamer=tokens, **limits)


class Tokens:
    """A transformers streamer: what `generate` says, on the event loop. The first thing it says is the prompt."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._loop.call_soon_threadsafe(self.queue.put_nowait, int(value))
        self._prompt_seen = True

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self.queue.put_nowait, None)


def engine(side: str, directory: Path, max_batch: int) -> Engine:
    """Not started."""
    if side == "naive":
        return OneByOne(directory)
    return HFEngine(directory, context_window=WINDOW, max_batch=max_batch, max_waiting=256)


def serve_args(directory: Path, storage: Path, max_batch: int) -> ServeArgs:
    """What both ways of serving are told."""
    batch = {"max_batch": max_batch, "max_waiting": 256}
    return ServeArgs(model_id=MODEL_ID, model_dir=directory, storage=storage, context_window=WINDOW, **batch)


async def serve_on_uvicorn(side: str, directory: Path, port: int, max_batch: int) -> None:
    """Until SIGTERM."""
    one = engine(side, directory, max_batch)
    await one.start()
    with tempfile.TemporaryDirectory() as storage:
        args = serve_args(directory, Path(storage), max_batch)
        catalog = FixedCatalog(Target(describe(args), load_tokenizer(directory), one))
        api = create_api(catalog, FeedbackLog.open(Path(storage)))
        await uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning")).serve()
    await one.stop()


def serve_on_ray(directory: Path, port: int, max_batch: int) -> None:
    """Until SIGTERM."""
    from bco_ray.pipeline.cluster import cluster
    from bco_ray.serving.server import start_server

    with cluster(workers=2, object_store_bytes=200_000_000), tempfile.TemporaryDirectory() as storage:
        handle = start_server(serve_args(directory, Path(storage), max_batch), port=port)
        try:
            threading.Event().wait()
        finally:
            handle.stop()


async def measure_bare(directory: Path, asks: list[Ask], clients: int, max_batch: int) -> list[dict[str, Any]]:
    """The answers' numbers."""
    one, tokenizer = engine("bare", directory, max_batch), load_tokenizer(directory)
    await one.start()

    async def stream(ask: Ask) -> AsyncIterator[tuple[str, int]]:
        tokens, ids = 0, tokenizer(ask.prompt)["input_ids"]
        async with aclosing(one.generate(GenRequest(ids, ask.new, temperature=0.0))) as events:
            async for event in events:
                tokens += len(event.token_ids)
                yield event.text, tokens

    await closed_loop(stream, asks[:2], 1)
    load = await closed_loop(stream, asks, clients)
    await one.stop()
    return [asdict(load)]


def main() -> None:
    """See above."""
    from bco_ray.config.environment import prepare_environment

    prepare_environment()
    side, directory, port, max_batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if side == "bare":
        order = json.load(sys.stdin)
        asks = [Ask(**ask) for ask in order["asks"]]
        json.dump(asyncio.run(measure_bare(directory, asks, order["clients"], max_batch)), sys.stdout)
    elif side == "serve":
        serve_on_ray(directory, port, max_batch)
    else:
        asyncio.run(serve_on_uvicorn(side, directory, port, max_batch))


if __name__ == "__main__":
    main()
