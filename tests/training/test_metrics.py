"""metrics.jsonl: what is in a row, and following the file while it is written."""

from __future__ import annotations

import errno
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


class Full:
    """A file whose disk takes so many bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._file.write(data[: self._room])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1, 12, 13, 20, 1000])
def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Whole, once and in order, whatever part of them the disk took."""
    log, tail, opened = MetricsLog(tmp_path / "metrics.jsonl"), MetricsTail(tmp_path / "metrics.jsonl"), Path.open
    log.append({"step": 0})
    assert [row["step"] for row in tail.read()] == [0]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *mode: Full(opened(path, *mode), room))
        for step in (1, 2, 3):
            log.append({"step": step})
    log.append({"step": 4})
    log.append({"step": 5})
    assert log.path.read_text() == "".join(f'{{"step": {step}}}\n' for step in range(6))
    assert [row["step"] for row in tail.read()][-1] == 5


def test_a_file_that_cannot_be_opened_delays_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")

    def failing(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        log.append({"step": 0})
    log.append({"step": 1})
    assert [row["step"] for row in log.read()] == [0, 1]


def test_one_that_was_given_up_for_dead_writes_no_more(tmp_path: Path) -> None:
    """Neither its own steps, nor over those of the attempt that took over."""
    old, new = MetricsLog(tmp_path / "metrics.jsonl"), MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        old.append({"step": step, "by": "old"})
    new.truncate(2)
    for step in range(2, 5):
        new.append({"step": step, "by": "new"})
        old.append({"step": step + 1, "by": "old"})
    new.append({"step": 5, "by": "new"})
    assert [(row["step"], row["by"]) for row in new.read()] == [
        (0, "old"), (1, "old"), (2, "new"), (3, "new"), (4, "new"), (5, "new")
    ]  # fmt: skip


def test_lines_between_a_dead_ones_last_and_the_first_of_the_next_are_cut_off(tmp_path: Path) -> None:
    old, new = MetricsLog(tmp_path / "metrics.jsonl"), MetricsLog(tmp_path / "metrics.jsonl")
    old.append({"step": 0, "by": "old"})
    new.truncate(1)
    new.append({"step": 1, "by": "new"})
    with new.path.open("a") as file:
        file.write('{"step": 9, "by": "somebody"}\n{"torn')
    new.append({"step": 2, "by": "new"})
    assert [row["step"] for row in new.read()] == [0, 1, 2]
