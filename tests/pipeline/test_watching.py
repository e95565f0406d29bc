"""metrics.jsonl as progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bco_ray.pipeline.status import RunStatus
from bco_ray.pipeline.watching import RECENT_STEPS, Watcher, tell_dry_run, training_progress, watching
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import Progress, Reporter, console
from bco_ray.training.metrics import MetricsLog


def row(step: int, *, seconds: float = 2.0, auc: float | None = 0.5) -> dict[str, Any]:
    return {"step": step, "total_steps": 100, "loss": 0.25, "delta": -0.5, "auc": auc,
            "tokens": 1000, "seconds": seconds}  # fmt: skip


def test_speed_and_time_left_are_those_of_the_last_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(30):
        log.append(row(step, seconds=60.0))
    for step in range(30, 30 + RECENT_STEPS):
        log.append(row(step))
    watcher = Watcher(log.path)
    assert watcher.look()
    assert training_progress(watcher.recent) == (Progress(50, 100, 500.0, 100.0), "loss 0.250 delta -0.500 auc 0.500")


def test_a_resumed_run_is_where_it_resumed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(30):
        log.append(row(step))
    watcher = Watcher(log.path)
    watcher.look()
    log.truncate(10)
    log.append(row(10, seconds=4.0))
    assert watcher.look()
    progress, _ = training_progress(watcher.recent)
    assert progress.done == 11
    assert [r["step"] for r in watcher.recent] == list(range(11))
    assert progress.eta_seconds == 89 * (10 * 2 + 4) / 11
    assert not watcher.look()


def test_numbers_that_are_absent_are_left_out() -> None:
    assert training_progress([row(0, auc=None)])[1] == "loss 0.250 delta -0.500"
    assert training_progress([row(0, auc=0.6), row(1, auc=None), row(2, auc=1.0)])[1].endswith("auc 0.800")
    assert training_progress([row(0, seconds=0.0)])[0] == Progress(1, 100, None, 0.0)


def test_the_last_step_is_reported_before_the_phase_is_over(tmp_path: Path) -> None:
    log, seen = MetricsLog(tmp_path / "metrics.jsonl"), list[Progress]()
    with watching(tmp_path, Reporter(lambda progress, _: seen.append(progress))):
        for step in range(100):
            log.append(row(step))
    assert seen[-1] == Progress(100, 100, 500.0, 0.0)


def test_events_are_told_and_become_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "print", lambda text, **_: said.append(text.strip()))
    journal = RunJournal(tmp_path)
    journal.write("failed", error="of an earlier command", again_in_seconds=1)
    with watching(tmp_path, Reporter(lambda *_: None)):
        journal.write("attempt", workers=2)
        journal.write("failed", error="worker 1: gone", again_in_seconds=5)
        MetricsLog(tmp_path / "metrics.jsonl").append(row(0))
    assert said == ["worker 1: gone; trying again in 5 s"]
    found = RunStatus.model_validate_json((tmp_path / "status.json").read_text())
    assert (found.state, found.error, found.step, found.total_steps) == ("retrying", "worker 1: gone", 1, 100)


def test_a_dry_run_is_told() -> None:
    trial = {"tokens": 1024, "tokens_per_second": 9000, "peak_bytes": 2**30, "limit_bytes": 2**32}
    with console.capture() as said:
        tell_dry_run({"max_tokens_per_micro_batch": 1024, "trials": [trial]})
    assert "1,024 tokens: 9,000 tokens/s per worker, 1.00 of 4.00 GiB" in said.get()
    assert "max_tokens_per_micro_batch: 1,024" in said.get()
