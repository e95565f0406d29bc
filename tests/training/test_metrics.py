"""metrics.jsonl: what is in a row, and following the file while it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bco_ray.training.metrics import MetricsLog, MetricsTail
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def documented() -> set[str]:
    """Metrics named in the first column of the page's tables."""
    cells = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("loss", ["bco", "kto"])
def test_every_metric_of_a_real_row_is_documented(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], loss: str
) -> None:
    objective = Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5, loss=loss)
    reference = "live" if loss == "kto" else "precomputed"
    trained = run_here(make_setup(f"documented-{loss}", objective=objective, reference=reference, rows_per_step=60))
    keys = {key for row in trained.metrics for key in row}
    assert keys - documented() == set()
    assert ("z_ref" in keys) == (loss == "kto")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0, "loss": float("nan"), "kl": float("inf"), "auc": 0.5})
    assert log.read() == [{"step": 0, "loss": None, "kl": None, "auc": 0.5}]


def test_the_tail_gives_each_line_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    tail = MetricsTail(log.path)
    assert tail.read() == []
    log.append({"step": 0})
    log.append({"step": 1})
    assert [row["step"] for row in tail.read()] == [0, 1]
    assert tail.read() == []
    log.append({"step": 2})
    assert [row["step"] for row in tail.read()] == [2]


def test_the_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    for written, wanted in (('{"step": 0}\n{"st', [0]), ('ep": 1', []), ("}", []), ("\n", [1])):
        with path.open("a") as file:
            file.write(written)
        assert [row["step"] for row in tail.read()] == wanted


@pytest.mark.parametrize("added", [0, 1, 9])
def test_the_tail_starts_over_when_a_resumed_run_truncates(tmp_path: Path, added: int) -> None:
    """Also where the new file has become longer than the old one was."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    tail = MetricsTail(log.path)
    for step in range(6):
        log.append({"step": step})
    assert len(tail.read()) == 6
    log.truncate(4)
    for step in range(4, 4 + added):
        log.append({"step": step})
    assert [row["step"] for row in tail.read()] == list(range(4 + added))


def test_truncating_drops_a_torn_last_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0})
    with log.path.open("a") as file:
        file.write('{"step": 1, "lo')
    log.truncate(1)
    log.append({"step": 1})
    assert [row["step"] for row in log.read()] == [0, 1]
