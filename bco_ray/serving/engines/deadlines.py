"""Streams that keep to a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from bco_ray.serving.engines.protocol import DeadlineError

Item = TypeVar("Item")


async def before(deadline: float | None, stream: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    """All of `stream`; it is closed with this one. Raises DeadlineError once `deadline` (unix seconds) has passed."""
    async with aclosing(stream):
        while True:
            left_seconds = None if deadline is None else deadline - time.time()
            try:
                if left_seconds is not None and left_seconds <= 0:  # a stream that never waits would not be told
                    raise TimeoutError
                async with asyncio.timeout(left_seconds):
                    item = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineError("the answer was not done by its deadline") from None
            yield item
