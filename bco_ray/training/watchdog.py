"""A worker that makes no progress ends itself: whoever waits for it, or for whom it waits, would never notice."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from bco_ray.storage import files
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import logger

EXIT_CODE = 86
"""Of a process that the watchdog ended."""

LOOKS_PER_LIMIT = 20

COLLECTIVE_SECONDS = 1800
"""How long workers wait for each other at least: models load, and checkpoints are read, at different speeds."""

LAST_WORDS_SECONDS = 30
"""For writing down what happened: storage that hangs may be what the process hung on."""


def collective_seconds(hang_seconds: float) -> int:
    """Longer than a watchdog may take to notice: it knows who hangs, whoever waits in a collective does not."""
    return round(max(COLLECTIVE_SECONDS, 1.1 * hang_seconds + 120))


class Watchdog:
    """Inside it, `beat` must be called at least every `limit_seconds`, or the process is ended, its stacks on disk."""

    def __init__(self, run: Path, rank: int, limit_seconds: float) -> None:
        self._run = run
        self._rank = rank
        self._limit = limit_seconds
        self._beat = time.monotonic()
        self._doing = "starting"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def beat(self, doing: str) -> None:
        """Progress was made; `doing` is what comes next."""
        self._beat, self._doing = time.monotonic(), doing

    def __enter__(self) -> Self:
        self._beat = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._limit / LOOKS_PER_LIMIT):
            if (seconds := time.monotonic() - self._beat) > self._limit:
                self._end(seconds)

    def _end(self, seconds: float) -> None:
        stacks = self._run / f"hang-{self._rank}.txt"
        message = f"no progress for {seconds:.0f} s while {self._doing}; stacks: {stacks}"
        _end_in_any_case()
        logger.error("worker %d: %s", self._rank, message)
        RunJournal(self._run).write("worker_failed", rank=self._rank, kind="hung", type="", error=message)
        try:
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                files.write_bytes(stacks, file.read())
        finally:
            os._exit(EXIT_CODE)


def _end_in_any_case() -> None:
    timer = threading.Timer(LAST_WORDS_SECONDS, os._exit, (EXIT_CODE,))
    timer.daemon = True
    timer.start()
