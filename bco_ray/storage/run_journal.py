"""What happened to a run, in order: `events.jsonl`, appended to by the driver and by every worker.

For people and for whoever decides what to do after a failure; nothing that a result depends on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bco_ray.telemetry import logger

JOURNAL = "events.jsonl"

_BEGIN = b'{"at": '
"""Of every line, and of nothing inside one: quotes in a text are escaped."""

Event = dict[str, Any]
"""`at` (unix seconds), `event` (its kind), and facts of that kind."""


class RunJournal:
    """The events of the run in one directory."""

    def __init__(self, run: Path) -> None:
        self.path = run / JOURNAL

    def write(self, event: str, **facts: Any) -> None:
        """Append one; a disk that is full does not stop the run that would say so."""
        line = json.dumps({"at": round(time.time(), 3), "event": event, **facts}, default=str) + "\n"
        logger.debug("%s", line.rstrip())
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("%s: cannot be written (%s): %s", self.path, error.strerror, line.rstrip())

    def read(self, *, since: int = 0) -> list[Event]:
        """All whole events from byte `since` on; lines that a full disk tore are passed over. Never raises OSError."""
        return list(_parsed(self.bytes_from(since)))

    def bytes_from(self, offset: int) -> bytes:
        """What was written behind `offset`, up to the last end of a line; nothing while it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    @property
    def size(self) -> int:
        """Bytes so far: what `read(since=...)` takes to see only what is new."""
        return self.path.stat().st_size if self.path.is_file() else 0


class JournalTail:
    """What the journal has gained since the last look."""

    def __init__(self, run: Path) -> None:
        self._journal = RunJournal(run)
        self._offset = 0

    def read(self) -> list[Event]:
        """Whole events not seen yet."""
        data = self._journal.bytes_from(self._offset)
        self._offset += len(data)
        return list(_parsed(data))


def _parsed(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = json.loads(line[max(0, line.rfind(_BEGIN)) :])  # a torn line has no end: the next follows at once
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
