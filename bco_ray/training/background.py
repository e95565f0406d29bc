"""One task beside the training that storage may fail: tried again until it succeeds or something newer replaces it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from bco_ray.errors import StorageError
from bco_ray.storage.checkpoints import DamagedError

T = TypeVar("T")

State = Literal["idle", "working", "failing"]

Abandoned = Callable[[], bool]
"""Whether the task should stop: its result is not wanted any more."""


@dataclass(frozen=True)
class Backoff:
    """Seconds between tries: the first, doubling up to the longest."""

    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def after(self, failures: int) -> float:
        """Before the next try; `failures` from 1."""
        return float(min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30)))


class Persistent:
    """Runs one task at a time in a thread: failures of storage are tried again, others come out of the next call."""

    def __init__(self, backoff: Backoff, on_failure: Callable[[Exception, float], None]) -> None:
        self._backoff = backoff
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._abandon = threading.Event()
        self._failing = False
        self._error: BaseException | None = None

    @property
    def state(self) -> State:
        """`failing`: the last try failed, and the next one has not begun: then the task ends as soon as it is asked."""
        if self._thread is None or not self._thread.is_alive():
            return "idle"
        return "failing" if self._failing else "working"

    def start(self, task: Callable[[Abandoned], None]) -> None:
        """Run `task`; the one before must be over (see `wait`, `abandon`). Raises what that one died of."""
        self._raise()
        self._abandon, self._failing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, args=(task, self._abandon), daemon=True)
        self._thread.start()

    def abandon(self, seconds: float) -> bool:
        """Give the task up; whether it ended in time."""
        self._abandon.set()
        return self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Whether nothing runs any more after at most so long. Raises what the task died of."""
        if self._thread is not None:
            self._thread.join(seconds)
        self._raise()
        return self.state == "idle"

    def _run(self, task: Callable[[Abandoned], None], abandon: threading.Event) -> None:
        failures = 0
        while not abandon.is_set():
            self._failing = False
            try:
                task(abandon.is_set)
            except (OSError, StorageError, MemoryError) as error:
                failures, self._failing = failures + 1, True
                seconds = self._backoff.after(failures)
                self._on_failure(error, seconds)
                abandon.wait(seconds)
            except BaseException as error:  # noqa: BLE001  it must reach whoever comes next
                self._error = error
                return
            else:
                return

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def insist(
    action: Callable[[], T], backoff: Backoff, *, seconds: float, on_failure: Callable[[Exception, float], None]
) -> T:
    """What `action` returns, tried again while storage fails, for at most so long; then its last error comes out.

    Damage is no failure of the storage: it comes out at once.
    """
    deadline, failures = time.monotonic() + seconds, 0
    while True:
        try:
            return action()
        except DamagedError:
            raise
        except (OSError, StorageError) as error:
            failures += 1
            pause = backoff.after(failures)
            if time.monotonic() + pause > deadline:
                raise
            on_failure(error, pause)
            time.sleep(pause)
