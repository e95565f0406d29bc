"""What is written down about the server is what it says of itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_routes_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate_http_api", DOCS / "generate_http_api.py")
    assert spec
    assert spec.loader
    generator: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generate_http_api", generator)  # dataclasses look there
    spec.loader.exec_module(generator)
    current = generator.page(generator.document()) == (DOCS / "http-api.md").read_text()
    assert current, f"docs/http-api.md is not what the server says now: run `{generator.COMMAND}`."
