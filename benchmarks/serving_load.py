"""Closed-loop load: so many clients, each asks, reads its answer to the end, and asks again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import httpx
from serving_task import Ask

Stream = Callable[[Ask], AsyncIterator[tuple[str, int]]]
"""Asks one; pieces of the answer as they come, each with the number of tokens known by then."""


@dataclass
class Answered:
    """One answer; seconds since it was asked for."""

    first_seconds: float
    last_seconds: float
    tokens: int
    text: str


@dataclass
class Load:
    """What `clients` at once got out of a side."""

    clients: int
    seconds: float = 0.0
    answers: list[Answered] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Tokens per second over all clients; first token and whole answer at the median and the 99th percentile."""
        first = [answer.first_seconds for answer in self.answers]
        whole = [answer.last_seconds for answer in self.answers]
        return {
            "tokens_per_second": sum(answer.tokens for answer in self.answers) / self.seconds,
            "first_p50": percentile(first, 50), "first_p99": percentile(first, 99),
            "whole_p50": percentile(whole, 50), "whole_p99": percentile(whole, 99),
        }  # fmt: skip


def percentile(values: Sequence[float], percent: int) -> float:
    """Between the values next to it."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


async def closed_loop(stream: Stream, asks: Sequence[Ask], clients: int) -> Load:
    """All of `asks`, by `clients` that each take the next one when they are done; answers in the order of `asks`."""
    load, left = Load(clients), list(enumerate(asks))[::-1]
    answers: dict[int, Answered] = {}

    async def client() -> None:
        while left:
            position, ask = left.pop()
            answers[position] = await one(stream, ask)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began
    load.answers = [answers[position] for position in range(len(asks))]
    return load


async def one(stream: Stream, ask: Ask) -> Answered:
    """Raises RuntimeError if nothing came."""
    began, first, pieces, tokens = time.perf_counter(), None, [], 0
    async for text, known in stream(ask):
        first = first or time.perf_counter()
        pieces.append(text)
        tokens = max(tokens, known)
    if first is None or not tokens:
        raise RuntimeError(f"no answer to {ask}")
    return Answered(first - began, time.perf_counter() - began, tokens, "".join(pieces))


def over_http(client: httpx.AsyncClient, body: dict[str, Any]) -> Stream:
    """`/v1/completions` as a stream that ends with its usage; `body` has what this server needs to be told."""

    async def stream(ask: Ask) -> AsyncIterator[tuple[str, int]]:
        request = {"prompt": ask.prompt, "max_tokens": ask.new, "stream": True, **body}
        async with client.stream("POST", "/v1/completions", json=request) as response:
            if response.is_error:
                raise RuntimeError((await response.aread()).decode())
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield _piece(json.loads(line.removeprefix("data: ")))

    return stream


def _piece(chunk: dict[str, Any]) -> tuple[str, int]:
    if "error" in chunk:
        raise RuntimeError(str(chunk["error"]))
    text = "".join(choice["text"] for choice in chunk["choices"])
    return text, (chunk.get("usage") or {}).get("completion_tokens", 0)
