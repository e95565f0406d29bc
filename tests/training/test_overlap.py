"""What runs beside the steps: order kept, errors heard, nothing left running."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from bco_ray.training.overlap import HostCopy, ahead


def numbers(made: list[int], count: int = 10) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


def waited_for(condition: object) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def test_items_come_in_order_and_are_made_ahead_but_not_all() -> None:
    made: list[int] = []
    items = ahead(numbers(made), depth=2)
    assert next(items) == 0
    assert waited_for(lambda: len(made) >= 3)
    assert len(made) <= 4
    assert list(items) == list(range(1, 10))


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    items = ahead(numbers([], count=10**9))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_an_error_while_making_comes_out_where_the_item_would_have() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_on_a_cpu_numbers_are_there_at_once() -> None:
    tensor = torch.arange(3)
    assert HostCopy(tensor).wait() is tensor
