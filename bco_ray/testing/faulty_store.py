"""A store that fails, waits and tears on purpose, around one that does not.

    store = FaultyStore(DirectoryStore(root))
    store.add(Fault("put", "*-rank-00001-*", times=3))      the next three such writes find the disk full
    store.add(Fault(code=errno.EIO, times=None))            everything fails, until `heal`

What fails depends on the order of calls and on the seed alone.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bco_ray.storage.stores import FileFact, Store, Write

HELD_SECONDS = 60
"""An operation that is held goes on by itself after so long: a test that forgot it ends."""


@dataclass(frozen=True)
class Fault:
    """What happens to operations (`put`, `get`, `local`, `sizes`, `delete`) on names; both may be `*` patterns.

    `times`: to how many of them, None: to all. `chance`: to this part of them only. `code`: the errno they fail with;
    None: they do not fail. `torn`: half of what is put stands under its final name, which no store should ever do.
    Before that they wait `seconds`, and until `held` is set.
    """

    operation: str = "*"
    name: str = "*"
    times: int | None = 1
    chance: float = 1.0
    code: int | None = errno.ENOSPC
    torn: bool = False
    seconds: float = 0.0
    held: threading.Event | None = None

    def matches(self, operation: str, name: str) -> bool:
        """Whether it is about such a call."""
        return fnmatchcase(operation, self.operation) and fnmatchcase(name, self.name)


class FaultyStore:
    """See `bco_ray.storage.stores.Store`; faults that were added first are looked at first."""

    def __init__(self, inner: Store, *, seed: int = 0) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        """(operation, name), those that failed too."""
        self._faults: list[Fault] = []
        self._left: list[int | None] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """From now on."""
        with self._lock:
            self._faults.append(fault)
            self._left.append(fault.times)

    def heal(self) -> None:
        """No more faults. What is held goes on."""
        with self._lock:
            for fault in self._faults:
                if fault.held is not None:
                    fault.held.set()
            self._faults, self._left = [], []

    def put(self, name: str, write: Write) -> FileFact:
        def write_half(path: Path) -> None:
            write(path)
            os.truncate(path, path.stat().st_size // 2)

        fault = self._met("put", name)
        if fault is not None and fault.torn:
            self.inner.put(name, write_half)
        _fail(fault, name)
        return self.inner.put(name, write)

    def get(self, name: str) -> bytes:
        _fail(self._met("get", name), name)
        return self.inner.get(name)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        _fail(self._met("local", name), name)
        with self.inner.local(name) as path:
            yield path

    def sizes(self, directory: str = "") -> dict[str, int]:
        _fail(self._met("sizes", directory), directory)
        return self.inner.sizes(directory)

    def delete(self, name: str) -> None:
        _fail(self._met("delete", name), name)
        self.inner.delete(name)

    def _met(self, operation: str, name: str) -> Fault | None:
        """The first fault that this call meets, once it has waited."""
        with self._lock:
            self.calls.append((operation, name))
            fault = next((f for n, f in enumerate(self._faults) if self._happens(n, f, operation, name)), None)
        if fault is not None:
            time.sleep(fault.seconds)
            if fault.held is not None:
                fault.held.wait(HELD_SECONDS)
        return fault

    def _happens(self, number: int, fault: Fault, operation: str, name: str) -> bool:
        left = self._left[number]
        if left == 0 or not fault.matches(operation, name) or self._random.random() >= fault.chance:
            return False
        self._left[number] = None if left is None else left - 1
        return True


def _fail(fault: Fault | None, name: str) -> None:
    if fault is not None and fault.code is not None:
        raise OSError(fault.code, os.strerror(fault.code), name)
