"""What a run counts: recorded by the process that drives it, from what its stages and its training leave on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bco_ray.storage.run_journal import Event
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Advance
from bco_ray.telemetry.meters import Meter, Meters
from bco_ray.training.metrics import MetricsLog

_STEP_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_CHECKPOINT_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_RUN = ("run",)

PROGRESS = Meter("bco_train_progress_ratio", "gauge", "Steps done, of all.", _RUN)
LOSS = Meter("bco_train_loss", "gauge", "Of the newest step.", _RUN)
DELTA = Meter("bco_train_delta", "gauge", "The reward shift.", _RUN)
MARGIN = Meter("bco_train_reward_margin", "gauge", "Mean reward of thumbs-up less that of thumbs-down.", _RUN)
SPEED = Meter("bco_train_tokens_per_second", "gauge", "Of the newest step, all workers.", _RUN)
WORKERS = Meter("bco_train_workers", "gauge", "Of the newest worker group.", _RUN)
STEPS = Meter("bco_train_steps", "counter", "Steps; those that a lost group did count once.", _RUN)
SKIPPED = Meter("bco_train_skipped_steps", "counter", "Steps whose gradient was not finite.", _RUN)
TOKENS = Meter("bco_train_tokens", "counter", "Tokens of those steps.", _RUN)
SECONDS = Meter("bco_train_step_seconds", "histogram", "Of a step.", _RUN, _STEP_SECONDS)
FAILURES = Meter("bco_train_failures", "counter", "Worker groups that failed.", _RUN)
SAVED = Meter("bco_checkpoint_seconds", "histogram", "Of writing one, beside the training.", _RUN, _CHECKPOINT_SECONDS)
UNSAVED = Meter("bco_checkpoint_failures", "counter", "Tries of a worker to write one that failed.", _RUN)
ROWS = Meter("bco_scoring_rows", "counter", "Rows scored.", _RUN)
PARTS = Meter("bco_scoring_parts", "counter", "Parts of finished scorings.", _RUN)
REFERENCE = Meter("bco_scoring_reference_rows", "counter", "Of finished scorings: computed, cached.", (*_RUN, "source"))
DROPPED = Meter("bco_scoring_dropped_rows", "counter", "Of finished scorings, in quarantine.", (*_RUN, "reason"))

METERS = (
    PROGRESS, LOSS, DELTA, MARGIN, SPEED, WORKERS, STEPS, SKIPPED, TOKENS, SECONDS, FAILURES, SAVED, UNSAVED, ROWS,
    PARTS, REFERENCE, DROPPED,
)  # fmt: skip

_SHOWN = {LOSS: "loss", DELTA: "delta", MARGIN: "rewards/margins", SPEED: "tokens_per_second"}


class TrainingMetrics:
    """Of the training in a run's directory, from now on: what was done before is not counted again."""

    def __init__(self, meters: Meters, run: Path) -> None:
        self._meters = meters
        self._run = run.name
        self._counted = max((row["step"] for row in MetricsLog(run / "metrics.jsonl").read()), default=-1)

    def stepped(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of `metrics.jsonl`, in which a resumed training does some steps again."""
        for row in rows:
            if row["step"] > self._counted:
                self._counted = row["step"]
                self._count(row)
        if rows:
            self._record(PROGRESS, (rows[-1]["step"] + 1) / rows[-1]["total_steps"])
        for meter, name in _SHOWN.items() if rows else ():
            if rows[-1].get(name) is not None:
                self._record(meter, rows[-1][name])

    def happened(self, event: Event) -> None:
        """One more of `events.jsonl`."""
        match event["event"]:
            case "training":
                self._record(WORKERS, event["workers"])
            case "checkpoint":
                self._record(SAVED, event["seconds"])
            case "checkpoint_failed":
                self._record(UNSAVED, 1)
            case "failed" | "gave_up":
                self._record(FAILURES, 1)

    def _count(self, row: Mapping[str, Any]) -> None:
        self._record(STEPS, 1)
        self._record(SKIPPED, int(row.get("grad_norm") is None))
        self._record(TOKENS, row["tokens"])
        self._record(SECONDS, row["seconds"])

    def _record(self, meter: Meter, value: float) -> None:
        self._meters.record(meter, value, run=self._run)


class ScoringMetrics:
    """Of one scoring run. A part that an earlier attempt finished is counted with the first of this one's."""

    def __init__(self, meters: Meters, run: str) -> None:
        self._meters = meters
        self._run = run
        self._done = 0.0

    def counting(self, advance: Advance) -> Advance:
        """`advance`, and its rows are counted."""

        def counted(done: float, total: float | None, note: str) -> None:
            self._meters.record(ROWS, done - self._done, run=self._run)
            self._done = done
            advance(done, total, note)

        return counted

    def scored(self, manifest: ScoredManifest) -> None:
        """It is finished. Drops are those of reading the log too."""
        record, run = self._meters.record, self._run
        record(PARTS, len(manifest.shards), run=run)
        record(REFERENCE, manifest.computed_rows, run=run, source="computed")
        record(REFERENCE, manifest.cached_rows, run=run, source="cached")
        for reason, rows in manifest.drops.items():
            record(DROPPED, rows, run=run, reason=reason)
