"""One request on its way through the engine: n answers sampled side by side, and collected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from bco_ray.serving.engines.protocol import Engine, GenRequest, TokenEvent, TokenLogprob
from bco_ray.serving.http.bodies import SamplingRequest
from bco_ray.serving.versions.catalog import Target
from bco_ray.storage.feedback_rows import ABORTED, Choice

Indexed = tuple[int, TokenEvent]
"""Which choice an event belongs to, and the event."""


@dataclass(frozen=True)
class Prompt:
    """What is asked: the tokens the model reads, and the messages (and tools) they were rendered from."""

    ids: list[int]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks, as far as an engine needs to know: see `GenRequest`."""

    deadline: float
    share: str


def requests_of(target: Target, body: SamplingRequest, ids: list[int], caller: Caller) -> list[GenRequest]:
    """One request per choice, cut to what the window leaves."""
    served = target.served
    return [
        GenRequest(
            token_ids=ids,
            max_new=min(body.limit or served.default_max_tokens, served.context_window - len(ids)),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            seed=None if body.seed is None else body.seed + index,
            stop=tuple(body.stop or ()),
            logprobs=body.wanted_logprobs,
            adapter=target.adapter,
            deadline=caller.deadline,
            share=caller.share,
        )
        for index in range(body.n or 1)
    ]


def shown_logprobs(event: TokenEvent) -> Sequence[TokenLogprob]:
    """Of the tokens that are text: the model's own end token is none."""
    return event.logprobs[:-1] if event.ended else event.logprobs


@dataclass
class _Partial:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ABORTED
    ended: bool = False
    cached: int = 0

    def add(self, event: TokenEvent) -> None:
        self.text.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += shown_logprobs(event)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.ended = self.ended or event.ended
        self.cached = self.cached or event.cached


@dataclass
class Timing:
    """When it began, when the first and the latest tokens came (seconds of `time.perf_counter`; 0.0: none yet)."""

    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    latest: float = 0.0

    def tick(self) -> None:
        """A token is here."""
        self.latest = time.perf_counter()
        self.first = self.first or self.latest


class Generation:
    """Runs `requests` (one per choice) and remembers what came."""

    def __init__(self, engine: Engine, requests: Sequence[GenRequest]) -> None:
        self.timing = Timing()
        self._engine = engine
        self._requests = requests
        self._partial = [_Partial() for _ in requests]

    async def events(self) -> AsyncGenerator[Indexed]:
        """Events of all choices as they come; closing the generator cancels them. Raises what the engine raises."""
        async with aclosing(merged([self._engine.generate(r) for r in self._requests])) as stream:
            async for index, event in stream:
                self.timing.tick()
                self._partial[index].add(event)
                yield index, event

    @property
    def choices(self) -> list[Choice]:
        """The answers as far as they came; whole once `events` is exhausted."""
        return [Choice("".join(p.text), p.token_ids, p.finish_reason, p.ended) for p in self._partial]

    @property
    def logprobs(self) -> list[list[TokenLogprob]]:
        """Of each answer's tokens, where they were asked for."""
        return [p.logprobs for p in self._partial]

    @property
    def cached(self) -> int:
        """Prompt tokens that a cache knew when the first answer began."""
        return self._partial[0].cached


async def merged(streams: Sequence[AsyncGenerator[TokenEvent]]) -> AsyncGenerator[Indexed]:
    """All streams at once, each event with the number of its stream; the first error ends all."""
    arrived: asyncio.Queue[Indexed | asyncio.Task[None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(i, stream, arrived)) for i, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if isinstance(item, tuple):
                yield item
            else:
                running -= 1
                item.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(index: int, stream: AsyncGenerator[TokenEvent], into: asyncio.Queue[Any]) -> None:
    async with aclosing(stream):
        async for event in stream:
            into.put_nowait((index, event))
