"""Who comes next: a bounded queue with one line per share, served so that nobody's many requests crowd out others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping

from bco_ray.serving.engines.batching.row import Row
from bco_ray.serving.engines.protocol import EngineOverloadedError

BURST = 16


class FairQueue:
    """Rows wait in one line per `request.share`. Any thread may call anything."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: dict[str, deque[Row]] = {}  # the share served longest ago comes first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return self._count()

    def put(self, row: Row) -> None:
        """Join the end of its line. Raises EngineOverloadedError if that is as long as its equal part of the places.

        While places are free a line may have a burst of them: the `n` choices of one request come together. One that
        came when it was alone may hold more for a while; then up to twice as many wait as there are places.
        """
        share = row.request.share
        with self._lock:
            mine, lines, all_lines = len(self._lines.get(share, ())), len({*self._lines, share}), self._count()
            part = max(1, self._limit // lines, min(BURST, self._limit - all_lines))
            if mine >= part or all_lines >= 2 * self._limit:
                raise EngineOverloadedError(f"{mine or all_lines} requests wait already")
            self._lines.setdefault(share, deque()).append(row)

    def take(self, running: Mapping[str, int], fits: Callable[[Row], bool]) -> Row | None:
        """The first row of the share that has the fewest running; None if that one does not fit (nobody overtakes)."""
        with self._lock:
            if not self._lines:
                return None
            share = min(self._lines, key=lambda name: running.get(name, 0))
            line = self._lines[share]
            if not fits(line[0]):
                return None
            row = line.popleft()
            del self._lines[share]
            if line:
                self._lines[share] = line
            return row

    def sweep(self, lost: Callable[[Row], bool]) -> list[Row]:
        """Remove and return the rows that need no slot any more."""
        with self._lock:
            gone = [row for line in self._lines.values() for row in line if lost(row)]
            for row in gone:
                line = self._lines[row.request.share]
                line.remove(row)
                if not line:
                    del self._lines[row.request.share]
            return gone

    def _count(self) -> int:
        return sum(map(len, self._lines.values()))
