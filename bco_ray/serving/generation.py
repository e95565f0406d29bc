"""One request on its way through the engine: n answers sampled side by side, collected, and committed to the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from bco_ray.serving.engine import Engine, GenRequest, TokenEvent
from bco_ray.serving.wire import Head
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog

Indexed = tuple[int, TokenEvent]
"""Which choice an event belongs to, and the event."""


@dataclass(frozen=True)
class Prompt:
    """What is asked: the tokens the model reads, and the messages (and tools) they were rendered from."""

    ids: list[int]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass
class _Partial:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    ended: bool = False


class Generation:
    """Runs `requests` (one per choice) and remembers what came."""

    def __init__(self, engine: Engine, head: Head, prompt: Prompt, requests: Sequence[GenRequest]) -> None:
        self.head = head
        self.prompt = prompt
        self._engine = engine
        self._requests = requests
        self._partial = [_Partial() for _ in requests]

    async def events(self) -> AsyncGenerator[Indexed]:
        """Events of all choices as they come; closing the generator cancels them. Raises what the engine raises."""
        async with aclosing(merged([self._engine.generate(r) for r in self._requests])) as stream:
            async for index, event in stream:
                partial = self._partial[index]
                partial.text.append(event.text)
                partial.token_ids += event.token_ids
                partial.finish_reason = event.finish_reason or partial.finish_reason
                partial.ended = partial.ended or event.ended
                yield index, event

    @property
    def choices(self) -> list[Choice]:
        """The answers; whole once `events` is exhausted."""
        return [Choice("".join(p.text), p.token_ids, p.finish_reason, p.ended) for p in self._partial]

    async def commit(self, log: FeedbackLog, sampling: dict[str, Any], user: str | None) -> None:
        """Make the answers votable. Must return before the client may think that the reply is complete."""
        completion = Completion(
            id=self.head.id,
            created_at=self.head.created,
            model=self.head.served.model_id,
            system_fingerprint=self.head.served.system_fingerprint,
            messages=self.prompt.messages,
            tools=self.prompt.tools,
            prompt_ids=self.prompt.ids,
            choices=self.choices,
            sampling=sampling,
            user=user,
            endpoint="chat" if self.head.chat else "text",
        )
        await asyncio.to_thread(log.add_completion, completion)


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
