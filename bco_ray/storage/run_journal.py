"""What happened to a run, in order: `events.jsonl`, appended to by the driver and by every worker.

In an object store, where nobody can append, each event is an object below that name.

For people and for whoever decides what to do after a failure; nothing that a result depends on.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bco_ray.storage.objects import ObjectPath
from bco_ray.telemetry import logger

JOURNAL = "events.jsonl"

_BEGIN = b'{"at": '
"""Of every line, and of nothing inside one: quotes in a text are escaped."""

Event = dict[str, Any]
"""`at` (unix seconds), `event` (its kind), and facts of that kind."""

Mark = int | frozenset[str]
"""How much of a journal there was: bytes, or names of objects."""

_NOTHING: frozenset[str] = frozenset()


class RunJournal:
    """The events of the run in one directory."""

    def __init__(self, run: Path) -> None:
        self.path = run / JOURNAL

    def write(self, event: str, **facts: Any) -> None:
        """Append one; a disk that is full does not stop the run that would say so."""
        line = json.dumps({"at": round(time.time(), 3), "event": event, **facts}, default=str) + "\n"
        logger.debug("%s", line.rstrip())
        try:
            self._append(line.encode())
        except OSError as error:
            logger.warning("%s: cannot be written (%s): %s", self.path, error.strerror or error, line.rstrip())

    def read(self, *, since: Mark = 0) -> list[Event]:
        """All whole events since then; lines that a full disk tore are passed over. Never raises OSError."""
        return list(_parsed(self.news(since)[0]))

    def news(self, since: Mark) -> tuple[bytes, Mark]:
        """What was written since, up to the last end of a line, and the new mark; nothing while it cannot be read."""
        try:
            return self._news_of_object(self.path, since) if isinstance(self.path, ObjectPath) else self._news(since)
        except OSError:
            return b"", since

    @property
    def mark(self) -> Mark:
        """What `read(since=...)` takes to see only what is new from now on."""
        if isinstance(self.path, ObjectPath):
            return frozenset(path.name for path in self.path.iterdir())
        return self.path.stat().st_size if self.path.is_file() else 0

    def _append(self, line: bytes) -> None:
        if isinstance(self.path, ObjectPath):
            (self.path / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json").write_bytes(line)
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _news(self, since: Mark) -> tuple[bytes, Mark]:
        offset = since if isinstance(since, int) else 0
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        return data, offset + len(data)

    @staticmethod
    def _news_of_object(path: ObjectPath, since: Mark) -> tuple[bytes, Mark]:
        seen = since if isinstance(since, frozenset) else _NOTHING
        found = sorted(event for event in path.iterdir() if event.name not in seen)
        return b"".join(event.read_bytes() for event in found), seen | {event.name for event in found}


class JournalTail:
    """What the journal has gained since the last look."""

    def __init__(self, run: Path) -> None:
        self._journal = RunJournal(run)
        self._mark: Mark = 0

    def read(self) -> list[Event]:
        """Whole events not seen yet."""
        data, self._mark = self._journal.news(self._mark)
        return list(_parsed(data))


def _parsed(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = json.loads(line[max(0, line.rfind(_BEGIN)) :])  # a torn line has no end: the next follows at once
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
