"""Being asked to stop: a checkpoint at the next step's end, then a clean exit.

Anybody may ask: the driver by a file in the run's directory, an operating system by SIGTERM, a cloud through Ray. A
worker that was asked says so in the sums that all workers add up anyway, so all of them stop after the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath

FILE = "stop.json"
POLL_SECONDS = 1.0
IN_BUCKET_POLL_SECONDS = 5.0

Notice = Callable[[], bool]
"""Whether this worker is about to be taken away; asked at every step, so it must be cheap."""

_terminated = threading.Event()


def ask_to_stop(run: Path, reason: str) -> None:
    """Ask the workers of the run in this directory, wherever they are."""
    files.write_json(run / FILE, {"reason": reason})


def withdraw(run: Path) -> None:
    """Nobody is asked any more: before a new attempt."""
    (run / FILE).unlink(missing_ok=True)


def stop_on_sigterm() -> None:
    """SIGTERM makes a checkpoint instead of an end. In the main thread only."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


def terminated() -> bool:
    """Whether SIGTERM came, after `stop_on_sigterm`."""
    return _terminated.is_set()


class StopRequests:
    """What one worker has been asked; it looks for the file at most every POLL_SECONDS, and worker 0 alone does."""

    def __init__(self, run: Path, rank: int, notices: Sequence[Notice] = ()) -> None:
        self._file = run / FILE if rank == 0 else None
        self._notices = (terminated, *notices)
        self._look_at = 0.0
        self._asked = False

    def asked(self) -> bool:
        """Once yes, always yes."""
        if not self._asked:
            self._asked = any(notice() for notice in self._notices) or self._file_is_there()
        return self._asked

    def _file_is_there(self) -> bool:
        if self._file is None or time.monotonic() < self._look_at:
            return False
        in_bucket = isinstance(self._file, ObjectPath)
        self._look_at = time.monotonic() + (IN_BUCKET_POLL_SECONDS if in_bucket else POLL_SECONDS)
        with suppress(OSError):  # storage that does not answer asks for nothing
            return self._file.exists()
        return False
