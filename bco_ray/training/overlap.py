"""What the device need not wait for: windows made ahead of time, numbers read a step later."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_END = object()


def ahead(items: Iterator[T], *, depth: int = 2) -> Generator[T]:
    """The same items in the same order, made by a thread that stays up to `depth` ahead; its errors come out here.

    Closing the iterator (or leaving it) ends the thread.
    """
    made: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001  it must reach whoever waits for the item
            put(_Failure(error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class HostCopy:
    """A tensor on its way from the device; `wait` returns it. On a CPU it is there already."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> Tensor:
        """The numbers, as they were when this was made."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
