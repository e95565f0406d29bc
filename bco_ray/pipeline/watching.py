"""How far a training is, seen from outside: its `metrics.jsonl` as progress, while Ray Train blocks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from bco_ray.storage import files
from bco_ray.telemetry import Progress, Reporter, console
from bco_ray.training.metrics import MetricsTail

POLL_SECONDS = 0.5
RECENT_STEPS = 20
"""Speed, time left and AUC are over the last so many steps."""

Row = Mapping[str, Any]


@contextmanager
def watching(metrics: Path, report: Reporter) -> Iterator[None]:
    """Reports every POLL_SECONDS what worker 0 has written meanwhile, and once more when the body is done."""
    done = threading.Event()

    def watch() -> None:
        watcher, last_look = Watcher(metrics), False
        dry_run = metrics.with_name("dry_run.json")
        told = dry_run.exists()
        while not last_look:
            last_look = done.wait(POLL_SECONDS)
            if not told and dry_run.exists():
                told = True
                tell_dry_run(files.read_json(dry_run))
            if watcher.look():
                report.show(*training_progress(watcher.recent))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def tell_dry_run(found: Mapping[str, Any]) -> None:
    """What micro-batches were tried, and which size was taken."""
    for trial in found["trials"]:
        used, limit = trial["peak_bytes"] / 2**30, trial["limit_bytes"] / 2**30
        numbers = f"{trial['tokens_per_second']:,} tokens/s per worker, {used:.2f} of {limit:.2f} GiB"
        console.print(f"  dry run: {trial['tokens']:,} tokens: {numbers}", highlight=False)
    console.print(f"  max_tokens_per_micro_batch: {found['max_tokens_per_micro_batch']:,}", highlight=False)


class Watcher:
    """The newest steps of a run, which a resume may take back."""

    def __init__(self, metrics: Path) -> None:
        self._tail = MetricsTail(metrics)
        self.recent: deque[Row] = deque(maxlen=RECENT_STEPS)

    def look(self) -> bool:
        """Whether there was anything new."""
        rows = self._tail.read()
        for row in rows:
            if self.recent and row["step"] <= self.recent[-1]["step"]:
                self.recent.clear()
            self.recent.append(row)
        return bool(rows)


def training_progress(recent: Sequence[Row]) -> tuple[Progress, str]:
    """How far a run is whose newest steps these are, and its numbers in words. Seconds are those steps' own."""
    last = recent[-1]
    done, total = last["step"] + 1, last["total_steps"]
    seconds = sum(row["seconds"] for row in recent)
    tokens_per_second = sum(row["tokens"] for row in recent) / seconds if seconds else None
    return Progress(done, total, tokens_per_second, (total - done) * seconds / len(recent)), _note(recent)


def _note(recent: Sequence[Row]) -> str:
    aucs = [row["auc"] for row in recent if row["auc"] is not None]
    numbers = {"loss": recent[-1]["loss"], "delta": recent[-1]["delta"], "auc": fmean(aucs) if aucs else None}
    return " ".join(f"{name} {value:.3f}" for name, value in numbers.items() if value is not None)
