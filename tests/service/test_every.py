"""What the job service does again and again: an error costs one turn, never the rest."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bco_ray.service.app import every


def test_an_error_is_told_and_the_next_turn_comes(caplog: pytest.LogCaptureFixture) -> None:
    turns, threads = list[int](), set[int]()

    def work() -> None:
        turns.append(len(turns))
        threads.add(threading.get_ident())
        if len(turns) < 3:
            raise RuntimeError("no luck")

    async def some_turns() -> None:
        task = asyncio.create_task(every(0.001, work, "it failed"))
        while len(turns) < 5:
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(some_turns(), 30))
    assert caplog.text.count("RuntimeError: no luck") == 2
    assert threading.get_ident() not in threads
