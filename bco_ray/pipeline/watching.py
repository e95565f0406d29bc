"""How far a training is, seen from outside while Ray Train blocks: its files as progress, words and `status.json`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from bco_ray.errors import StorageError
from bco_ray.pipeline.metrics import TrainingMetrics
from bco_ray.pipeline.status import StatusFile
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath
from bco_ray.storage.run_journal import JournalTail
from bco_ray.telemetry import Progress, Reporter, logger, tell
from bco_ray.telemetry.meters import Meters, NoMeters
from bco_ray.training.metrics import MetricsTail

POLL_SECONDS = 0.5
IN_BUCKET_POLL_SECONDS = 3.0
"""Every look is some requests."""

RECENT_STEPS = 20
"""Speed, time left and AUC are over the last so many steps."""

Row = Mapping[str, Any]


@contextmanager
def watching(run: Path, report: Reporter, meters: Meters = NoMeters()) -> Iterator[None]:
    """Says every POLL_SECONDS what happened in the run's directory, and once more when the body is done."""
    done = threading.Event()
    watch = Watch(run, report, meters)

    def look_until_done() -> None:
        last_look = False
        while not last_look:
            last_look = done.wait(IN_BUCKET_POLL_SECONDS if isinstance(run, ObjectPath) else POLL_SECONDS)
            watch.look()

    thread = threading.Thread(target=look_until_done, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


class Watch:
    """One look after another at a run: what is new is shown, and becomes its status."""

    def __init__(self, run: Path, report: Reporter, meters: Meters = NoMeters()) -> None:
        self._report = report
        self._counted = TrainingMetrics(meters, run)
        self._metrics = Watcher(run / "metrics.jsonl")
        self._events = JournalTail(run)
        self._events.read()  # what an earlier command did is its own story
        self._status = StatusFile(run)
        self._dry_run = run / "dry_run.json"
        self._told_dry_run = self._dry_run.exists()
        self._status.write(None)  # what a killed command left there is not so any more

    def look(self) -> None:
        """Whatever there is; storage that cannot be read now is looked at again next time."""
        try:
            self._look()
        except (OSError, StorageError, ValueError) as error:
            logger.debug("watching: %s", error)

    def _look(self) -> None:
        events = self._events.read()
        for event in events:
            if words := self._status.words_for(event):
                tell(f"  {words}")
            self._status.add(event)
            self._counted.happened(event)
        if not self._told_dry_run and self._dry_run.exists():
            self._told_dry_run = True
            tell_dry_run(files.read_json(self._dry_run))
        progressed = self._metrics.look()
        self._counted.stepped(progressed)
        if progressed:
            self._report.show(*training_progress(self._metrics.recent))
        if events or progressed:
            self._status.write(training_progress(self._metrics.recent)[0] if progressed else None)


def tell_dry_run(found: Mapping[str, Any]) -> None:
    """What micro-batches were tried, and which size was taken."""
    for trial in found["trials"]:
        used, limit = trial["peak_bytes"] / 2**30, trial["limit_bytes"] / 2**30
        numbers = f"{trial['tokens_per_second']:,} tokens/s per worker, {used:.2f} of {limit:.2f} GiB"
        tell(f"  dry run: {trial['tokens']:,} tokens: {numbers}")
    tell(f"  max_tokens_per_micro_batch: {found['max_tokens_per_micro_batch']:,}")


class Watcher:
    """The newest steps of a run, which a resume may take back."""

    def __init__(self, metrics: Path) -> None:
        self._tail = MetricsTail(metrics)
        self.recent: deque[Row] = deque(maxlen=RECENT_STEPS)

    def look(self) -> Sequence[Row]:
        """What is new."""
        rows = self._tail.read()
        for row in rows:
            if self.recent and row["step"] <= self.recent[-1]["step"]:
                self.recent.clear()
            self.recent.append(row)
        return rows


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
