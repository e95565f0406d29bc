"""Our log lines on stderr: text for people, or with `BCO_LOG_FORMAT=json` one JSON object per line.

Whose a line is (`job_id`, `attempt`, `run`, `request_id`, `project`) is said once, around the work or for a whole
process, and stands in every line from there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

logger = logging.getLogger("bco_ray")

FORMAT = "BCO_LOG_FORMAT"
"""`text` or `json`."""

CONTEXT = "BCO_LOG_CONTEXT"
"""A JSON object: what a process's parent knows of whose its lines are."""

Facts = Mapping[str, str | int]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_of_process: dict[str, str | int] = {}
_of_work: ContextVar[Facts] = ContextVar("of_work")


def configure_logging(level: str = "INFO", **facts: str | int) -> None:
    """Send our log lines to stderr, once; libraries stay at WARNING. `facts` are true of the whole process."""
    _of_process.update(facts)
    if logger.handlers:
        return
    for name, value in _inherited().items():
        _of_process.setdefault(name, value)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if in_json() else TextLines(_TEXT))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    if (asked := os.environ.get(FORMAT, "text")) not in {"text", "json"}:
        logger.warning("%s: %s: there are text and json; this is text", FORMAT, asked)


@contextmanager
def log_context(**facts: str | int) -> Iterator[None]:
    """The body's lines tell these too, those of its tasks and of what it does by `asyncio.to_thread` among them."""
    before = _of_work.set({**_of_work.get({}), **facts})
    try:
        yield
    finally:
        _of_work.reset(before)


def in_json() -> bool:
    """Whether lines are to be JSON."""
    return os.environ.get(FORMAT) == "json"


def environment(**facts: str | int) -> dict[str, str]:
    """Variables for another process, whose lines then look like ours and tell these facts."""
    asked = {FORMAT: os.environ[FORMAT]} if FORMAT in os.environ else {}
    return {CONTEXT: json.dumps(facts), **asked}


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, the facts, and `exception` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: JSON escapes what would end it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_known(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """The request is named; a text log is one job's already."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """The line above a traceback."""
        line, request = super().formatMessage(record), str(_known().get("request_id", ""))
        return line if request in line else f"{line} [request {request}]"


def _known() -> dict[str, str | int]:
    return {**_of_process, **_of_work.get({})}


def _inherited() -> Facts:
    try:
        found = json.loads(os.environ.get(CONTEXT, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
