"""The micro-batch that nobody chose: found on real rows, written down, used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bco_ray.training import dry_run
from bco_ray.training.setup import TrainSetup


def trials(setup: TrainSetup) -> dict[str, Any]:
    return json.loads((Path(setup.run) / "dry_run.json").read_text())


@pytest.fixture
def unchosen(make_setup: Callable[..., TrainSetup], request: Any) -> TrainSetup:
    """A window of 60 rows has some 900 tokens; no row is longer than 24."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return make_setup(name, max_tokens_per_micro_batch=0, max_length=64, rows_per_step=60)


def test_sizes_double_until_it_is_not_worth_it(unchosen: TrainSetup, run_here: Callable[..., Any]) -> None:
    metrics = run_here(unchosen).metrics
    found = trials(unchosen)
    assert len(metrics) == 2
    assert [t["tokens"] for t in found["trials"]] == [64 * 2**n for n in range(len(found["trials"]))]
    assert found["max_tokens_per_micro_batch"] in [t["tokens"] for t in found["trials"]]
    assert all(0 < t["peak_bytes"] < t["limit_bytes"] for t in found["trials"])
    assert metrics[0]["rewards/chosen"] == 0, "the model of the dry run was thrown away"


def test_what_was_found_is_used_again(
    unchosen: TrainSetup, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(unchosen.run) / "dry_run.json").write_text('{"max_tokens_per_micro_batch": 128}')
    monkeypatch.setattr(dry_run, "find_budget", lambda *_, **__: pytest.fail("measured again"))
    first = run_here(unchosen).metrics
    elsewhere = Path(unchosen.run) / "chosen"
    elsewhere.mkdir()
    again = run_here(replace(unchosen, max_tokens_per_micro_batch=128, run=str(elsewhere))).metrics
    assert [row["loss"] for row in again] == [row["loss"] for row in first]


def test_memory_that_would_not_do_stops_the_search(
    unchosen: TrainSetup, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_limit", lambda device, workers: 1)
    run_here(unchosen)
    assert [t["tokens"] for t in trials(unchosen)["trials"]] == [64]


def test_a_small_window_needs_no_search(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> None:
    setup = make_setup("small-window", max_tokens_per_micro_batch=0, max_length=2048)
    run_here(setup)
    assert trials(setup) == {"max_tokens_per_micro_batch": 2048, "trials": []}
