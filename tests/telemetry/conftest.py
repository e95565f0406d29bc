"""Our logger as a process finds it that has just begun."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bco_ray.telemetry import logs


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    monkeypatch.setattr(logs, "_of_process", {})
    for name in (logs.FORMAT, logs.CONTEXT):
        monkeypatch.delenv(name, raising=False)
    logger, handlers, level = logs.logger, logs.logger.handlers[:], logs.logger.level
    propagate = logger.propagate
    logger.handlers.clear()
    logger.propagate = True  # else pytest puts handlers of its own there for the test's time
    yield logger
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
