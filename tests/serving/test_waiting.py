"""Who comes next."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.serving.engines.batching.waiting import FairQueue
from bco_ray.serving.engines.protocol import EngineOverloadedError


def row(name: str) -> Any:
    """`a1` belongs to share a."""
    return SimpleNamespace(name=name, request=SimpleNamespace(share=name[0]))


def queue_of(*names: str) -> FairQueue:
    waiting = FairQueue(len(names))
    for name in names:
        waiting.put(row(name))
    return waiting


def order(waiting: FairQueue, running: Counter[str]) -> list[str]:
    """Names as they are taken by slots that never end."""
    names = []
    while (taken := waiting.take(running, lambda _: True)) is not None:
        running[taken.request.share] += 1
        names.append(taken.name)
    return names


def test_equals_take_turns() -> None:
    assert order(queue_of("a1", "a2", "a3", "b1", "b2", "c1"), Counter()) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_has_least_comes_first() -> None:
    assert order(queue_of("a1", "a2", "b1", "b2"), Counter(a=2)) == ["b1", "b2", "a1", "a2"]


def test_nobody_overtakes_one_that_does_not_fit() -> None:
    waiting = queue_of("a1", "b1")
    assert waiting.take(Counter(), lambda row: row.name != "a1") is None
    assert len(waiting) == 2


def test_it_is_bounded() -> None:
    waiting = queue_of("a1", "b1")
    for share in "cd":
        waiting.put(row(share))
    with pytest.raises(EngineOverloadedError):
        waiting.put(row("e"))


def test_one_who_sends_much_does_not_shut_out_the_others() -> None:
    waiting = queue_of("a1", "a2", "a3", "a4")
    with pytest.raises(EngineOverloadedError, match="4 requests wait"):
        waiting.put(row("a5"))
    waiting.put(row("b1"))
    waiting.put(row("b2"))
    with pytest.raises(EngineOverloadedError, match="2 requests wait"):
        waiting.put(row("b3"))


def test_choices_of_one_request_come_in_together_while_places_are_free() -> None:
    waiting = FairQueue(64)
    for share in "abcd":
        waiting.put(row(share))
    for n in range(16):
        waiting.put(row(f"n{n}"))
    with pytest.raises(EngineOverloadedError, match="16 requests wait"):
        waiting.put(row("n16"))


def test_swept_rows_leave_room() -> None:
    waiting = queue_of("a1", "a2", "b1")
    assert [gone.name for gone in waiting.sweep(lambda row: row.name != "a2")] == ["a1", "b1"]
    waiting.put(row("b2"))
    assert order(waiting, Counter()) == ["a2", "b2"]
