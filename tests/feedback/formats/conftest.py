"""What every test of an importer needs: the rows of its fixture file, and all they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.errors import Refused
from bco_ray.feedback.formats.entry import Entry, Row
from bco_ray.feedback.formats.registry import by_name
from bco_ray.feedback.parsing import read_entries, resolve_label, to_row

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def rows() -> Callable[[str], list[Row]]:
    """The rows of a fixture file, by its stem."""
    return lambda stem: [json.loads(line) for line in (FIXTURES / f"{stem}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def said(rows: Callable[[str], list[Row]]) -> Callable[[str], list[dict[str, Any] | str]]:
    """Per entry of a fixture (named as its format): its fields, kind included, or the reason of a refusal."""

    def entries(name: str) -> list[dict[str, Any] | str]:
        found: list[dict[str, Any] | str] = []
        for row in rows(name):
            for entry in read_entries(json.dumps(row).encode(), by_name(name)):
                found.append(entry.reason if isinstance(entry, Refused) else _checked(name, entry))
        return found

    return entries


def _checked(name: str, entry: Entry) -> dict[str, Any]:
    """The entry, once it has proved to be one that the rest can use."""
    if entry.kind not in ("response", "demonstration"):
        resolve_label(entry.fields, DEFAULT_LABEL_MAP | dict(by_name(name).label_map))
    if entry.kind in ("vote", "demonstration"):
        to_row({**entry.fields, "label": True, "label_raw": None}, default_id="x")
    else:
        assert entry.fields["response_id"]
        assert by_name(name).joins
        words = {"prompt": "Q", "completion": "A", **entry.fields, "label": True, "label_raw": None}
        to_row(words, default_id="x")
    return {"kind": entry.kind, **entry.fields}
