"""What a run counts, from what lies on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.pipeline.metrics import ScoringMetrics
from bco_ray.pipeline.watching import watching
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import Reporter
from bco_ray.telemetry.meters import Meter
from bco_ray.training.metrics import MetricsLog


class Kept:
    def __init__(self) -> None:
        self.recorded: list[tuple[str, float, tuple[str, ...]]] = []

    def record(self, meter: Meter, value: float, **labels: str) -> None:
        assert labels.keys() == set(meter.labels)
        self.recorded.append((meter.name, value, tuple(labels.values())))

    def of(self, name: str) -> list[float]:
        assert {labels[0] for one, _, labels in self.recorded if one == name} <= {"bot-1f"}
        return [value for one, value, _ in self.recorded if one == name]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "bot-1f").mkdir()
    return tmp_path / "bot-1f"


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "total_steps": 10, "loss": 0.5, "delta": -0.25, "rewards/margins": 0.1, "grad_norm": 1.0,
            "auc": None, "tokens": 100, "seconds": 2.0, "tokens_per_second": 50.0, **more}  # fmt: skip


def test_steps_and_events_of_a_training(run: Path) -> None:
    kept, log, journal = Kept(), MetricsLog(run / "metrics.jsonl"), RunJournal(run)
    with watching(run, Reporter(lambda *_: None), kept):
        log.append(row(0))
        log.append(row(1, grad_norm=None, loss=float("nan"), **{"rewards/margins": None}))
        journal.write("training", step=0, total_steps=10, workers=2)
        journal.write("checkpoint", step=2, seconds=1.5, deleted=[])
        journal.write("checkpoint_failed", step=2, rank=0, error="no space", again_in_seconds=1)
        journal.write("failed", error="worker 1: gone", again_in_seconds=5)
    assert sum(kept.of("bco_train_steps")) == 2
    assert sum(kept.of("bco_train_skipped_steps")) == 1
    assert sum(kept.of("bco_train_tokens")) == 200
    assert kept.of("bco_train_step_seconds") == [2.0, 2.0]
    assert kept.of("bco_train_progress_ratio")[-1] == 0.2
    assert kept.of("bco_train_delta")[-1] == -0.25
    assert kept.of("bco_train_workers") == [2]
    assert kept.of("bco_checkpoint_seconds") == [1.5]
    assert kept.of("bco_checkpoint_failures") == kept.of("bco_train_failures") == [1]
    assert set(kept.of("bco_train_loss")) <= {0.5}


def test_steps_done_before_or_again_count_once(run: Path) -> None:
    kept, log = Kept(), MetricsLog(run / "metrics.jsonl")
    for step in range(3):
        log.append(row(step))
    with watching(run, Reporter(lambda *_: None), kept):
        log.truncate(2)
        for step in range(2, 6):
            log.append(row(step))
    assert sum(kept.of("bco_train_steps")) == 3
    assert kept.of("bco_train_progress_ratio")[-1] == 0.6


def test_rows_of_a_scoring_and_what_came_of_them() -> None:
    kept, passed = Kept(), []
    metrics = ScoringMetrics(kept, "bot-1f")
    advance = metrics.counting(lambda *said: passed.append(said))
    for done in (0, 40, 100, 100):
        advance(done, 100, "rows scored")
    assert kept.of("bco_scoring_rows") == [0, 40, 60, 0]
    assert passed[-1] == (100, 100, "rows scored")
    manifest: Any = SimpleNamespace(shards=[1, 2], computed_rows=70, cached_rows=20, drops={"too_long": 10})
    metrics.scored(manifest)
    assert kept.recorded[4:] == [
        ("bco_scoring_parts", 2, ("bot-1f",)),
        ("bco_scoring_reference_rows", 70, ("bot-1f", "computed")),
        ("bco_scoring_reference_rows", 20, ("bot-1f", "cached")),
        ("bco_scoring_dropped_rows", 10, ("bot-1f", "too_long")),
    ]
