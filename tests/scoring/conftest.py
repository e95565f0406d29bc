"""A tiny model, and records to score, for all tests of scoring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bco_ray.schema import Message, Record
from bco_ray.testing.tiny import write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    def make(prompt: str = "Hi", answer: str = "Hello there.", **changes: Any) -> Record:
        asked, answered = Message(role="user", content=prompt), Message(role="assistant", content=answer)
        return Record.model_validate({"id": "r", "prompt": [asked], "completion": [answered], "label": True} | changes)

    return make
