"""How far a job is, read from what its driver and its training leave on disk, and what of it becomes an event."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bco_ray.config.training import first_step
from bco_ray.control.budget import Spent, gpus_held
from bco_ray.control.job import Job, Json, News
from bco_ray.errors import StorageError
from bco_ray.storage import files
from bco_ray.storage.growing import LineTail
from bco_ray.storage.job_directory import JobDirectory

METRIC_EVENTS = 100
"""About so many of a job's steps become events; `metrics.jsonl` of its run has them all."""

_STATUS = ("step", "total_steps", "waiting_for", "checkpoint_step", "problem", "workers")
_PLOTTED = ("loss", "learning_rate", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
            "rewards/accuracies", "delta", "kl", "auc", "epoch")  # fmt: skip


class Follower:
    """Remembers of each job how much of its metrics has been read, and the tokens of each step."""

    def __init__(self) -> None:
        self._tails: dict[str, LineTail] = {}
        self._tokens: defaultdict[str, dict[int, int]] = defaultdict(dict)

    def look(self, job: Job, directory: JobDirectory, *, running: bool) -> tuple[Json, list[News]]:
        """The job's `details` as they are now, and the events since those it has.

        While it is `running` its time is charged; once it is not, the rest up to its driver's last sign of life.
        """
        progress, resolved = directory.progress, directory.resolved
        run = files.path_of(resolved["run"]) if resolved else None
        details = {**job.details, "waiting_for": None, **_phase(progress), **(_training(run) if run else {})}
        if progress.get("phase") != "train":  # what is left there is of a training before
            details["waiting_for"] = progress.get("waiting_for")
        if details["waiting_for"]:
            details["eta_seconds"] = None
        news = [News(f"Phase {details['phase']}.")] if details.get("phase") != job.details.get("phase") else []
        if resolved and "spec" not in job.details:
            details["spec"] = resolved["spec"]
        rows = list(self._rows(job, run)) if run else []
        if rows:
            details["metrics_step"] = rows[-1]["step"]
        return self._charged(job, details, running=running), [*news, *map(_metrics_event, rows)]

    def _charged(self, job: Job, details: Json, *, running: bool) -> Json:
        spent = Spent.of(job.details)
        if not running and spent.at is None:
            return details
        until = time.time() if running else min(time.time(), details.get("at") or math.inf)
        gpus = gpus_held(details.get("spec") or job.spec, details)
        waiting = bool(details["waiting_for"])
        charged = spent.until(until, gpus, sum(self._tokens[job.id].values()), waiting=waiting)
        return {**details, "spent": charged if running else Spent(**charged).paused()}

    def keep(self, job_ids: Collection[str]) -> None:
        """Of these; of others there is nothing more to come."""
        for job_id in [*self._tails, *self._tokens]:
            if job_id not in job_ids:
                self.forget(job_id)

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self._tails.pop(job_id, None)
        self._tokens.pop(job_id, None)

    def _rows(self, job: Job, run: Path) -> Iterator[Json]:
        """New steps that become events. A resumed training does steps again; they are told once."""
        first = first_step(job.spec["training"].get("start"))
        last = max(job.details.get("metrics_step", -1), first - 1)
        for line in self._news(job, run):
            row = _parsed(line)
            if row is None or row["step"] < first:
                continue
            self._tokens[job.id][row["step"]] = row.get("tokens", 0)
            stride = max(1, row.get("total_steps", 1) // METRIC_EVENTS)
            if row["step"] > last and (row["step"] % stride == 0 or row["step"] + 1 == row.get("total_steps")):
                last = row["step"]
                yield row

    def _news(self, job: Job, run: Path) -> list[bytes]:
        tail = self._tails.setdefault(job.id, LineTail(run / "metrics.jsonl"))
        with suppress(OSError):  # storage that does not answer is asked again
            return tail.read()
        return []


def _phase(progress: Json) -> Json:
    return {name: progress.get(name) for name in ("phase", "percent", "eta_seconds", "at") if progress.get("phase")}


def _training(run: Path) -> Json:
    try:
        status = files.read_json(run / "status.json")
    except StorageError:
        return {}
    return {name: status.get(name) for name in _STATUS}


def _metrics_event(row: Json) -> News:
    data = {"step": row["step"], "total_steps": row.get("total_steps"), "train_loss": row.get("loss")}
    data |= {name: row[name] for name in _PLOTTED if name in row}
    loss = f"{row['loss']:.4f}" if isinstance(row.get("loss"), float) else "none"
    return News(f"Step {row['step'] + 1}/{row.get('total_steps')}: training loss={loss}", type="metrics", data=data)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
