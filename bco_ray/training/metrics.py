"""One optimizer step as the numbers people plot, and the file they are appended to."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bco_ray.objective import LossSums, auc
from bco_ray.storage import files
from bco_ray.storage.growing import LineTail, Uploaded
from bco_ray.storage.objects import ObjectPath
from bco_ray.telemetry import logger
from bco_ray.training.batches import WindowTotals
from bco_ray.training.step import Objective, StepNumbers


def step_metrics(numbers: StepNumbers, totals: WindowTotals, objective: Objective) -> dict[str, float | None]:
    """Means per class and what follows from them; None for a class that was absent (spec section 6).

    `kl` estimates KL(reference || policy) as -mean(r) / beta over the window's rows, in nats. `error_term` is what the
    shift keeps small (theorem 4). `grad_share/chosen`: the thumbs-up rows' share of the pull on rewards. `ess/...`: the
    effective share of a class's rows under its weights, 1 if all weigh the same.
    """
    sums = numbers.sums
    up, down = _ClassMeans(sums, "chosen"), _ClassMeans(sums, "rejected")
    rows = up.count + down.count
    pulls = (objective.desirable_weight * (up.mean("pull_sum") or 0.0),
             objective.undesirable_weight * (down.mean("pull_sum") or 0.0))  # fmt: skip
    reward_sum = float(sums.chosen_reward_sum + sums.rejected_reward_sum)
    correct = float(sums.chosen_correct_count + sums.rejected_correct_count)
    metrics = {
        "rewards/chosen": up.mean("reward_sum"),
        "rewards/rejected": down.mean("reward_sum"),
        "rewards/margins": _combine(operator.sub, up.mean("reward_sum"), down.mean("reward_sum")),
        "rewards/accuracies": correct / rows if rows else None,
        "logps/chosen": up.mean("logps_sum"),
        "logps/rejected": down.mean("logps_sum"),
        "kl": -reward_sum / objective.beta / rows if rows else None,
        "auc": _auc(numbers, totals),
        "error_term": _combine(operator.add, up.mean("error_sum"), down.mean("error_sum")),
        "grad_share/chosen": pulls[0] / sum(pulls) if sum(pulls) else None,
        "ess/chosen": up.effective_share,
        "ess/rejected": down.effective_share,
        "count/chosen": up.count,
        "count/rejected": down.count,
    }
    return metrics | ({"z_ref": numbers.z_ref} if objective.kind.mismatched else {})


class _ClassMeans:
    """One class's sums as means over its rows."""

    def __init__(self, sums: LossSums, side: str) -> None:
        self._sum = {name: float(getattr(sums, f"{side}_{name}")) for name in _SUMMED}
        self.count = self._sum["count"]

    def mean(self, name: str) -> float | None:
        return self._sum[name] / self.count if self.count else None

    @property
    def effective_share(self) -> float | None:
        squares = self._sum["weight_square_sum"]
        return self._sum["weight_sum"] ** 2 / squares / self.count if self.count and squares else None


_SUMMED = ("count", "weight_sum", "weight_square_sum", "reward_sum", "logps_sum", "pull_sum", "error_sum")


def _combine(how: Callable[[float, float], float], first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else how(first, second)


def _auc(numbers: StepNumbers, totals: WindowTotals) -> float | None:
    """Of the window's rewards against its labels."""
    labels = totals.labels_W[totals.valid_W]
    if labels.all() or not labels.any() or not bool(torch.isfinite(numbers.rewards_W).all()):
        return None
    return auc(numbers.rewards_W.numpy()[totals.valid_W], labels)


class MetricsLog:
    """`metrics.jsonl`: one object per step, in step order, each step once. A disk that is full delays its lines.

    Whoever truncates it replaces it; a process that wrote to the one before was given up for dead and writes no more.
    In an object store its lines appear after some seconds, all of them with `flush`.
    """

    def __init__(self, path: Path, allowed: Callable[[], None] = lambda: None) -> None:
        """`allowed`: see `Uploaded`."""
        self.path = path
        self._allowed = allowed
        self._failing = False
        self._uploaded: Uploaded | None = None
        self._unwritten = ""
        self._good_bytes: int | None = None
        self._file_id: int | None = None

    def truncate(self, next_step: int) -> None:
        """Forget steps from `next_step` on: a resumed run is about to do them again. A torn last line goes too."""
        kept = [row for row in self.read() if row["step"] < next_step]
        files.write_bytes(self.path, "".join(_line(row) for row in kept).encode())
        self._uploaded = None
        self._good_bytes, self._file_id = None, None

    def append(self, row: dict[str, Any]) -> None:
        """Add one step; numbers that are not finite become null."""
        self._unwritten += _line({key: _finite(value) for key, value in row.items()})
        try:
            self._write()
            self._failing = False
        except OSError as error:
            if not self._failing:
                reason = error.strerror or error
                logger.warning("%s: cannot be written (%s); kept here until it can", self.path, reason)
            self._failing = True

    def flush(self) -> None:
        """Write what a full disk has kept waiting. Raises OSError if it still cannot be."""
        if self._unwritten:
            self._write()
        if self._uploaded:
            self._uploaded.upload()

    def _write(self) -> None:
        """What a write that failed left behind half goes first."""
        if isinstance(self.path, ObjectPath):
            self._uploaded = self._uploaded or Uploaded(self.path, self._allowed)
        self._append_to(self._uploaded.local if self._uploaded else self.path)
        if self._uploaded:
            self._uploaded.changed()

    def _append_to(self, path: Path) -> None:
        with path.open("ab") as file:
            size, file_id = file.tell(), os.fstat(file.fileno()).st_ino
            if self._file_id not in (None, file_id):
                self._unwritten = ""
                return
            self._file_id = file_id
            if self._good_bytes is not None and size > self._good_bytes:
                file.truncate(self._good_bytes)
                size = self._good_bytes
            self._good_bytes = size
            data = self._unwritten.encode()
            file.write(data)
            file.flush()
            self._good_bytes, self._unwritten = size + len(data), ""

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        return MetricsTail(self.path).read()


class MetricsTail:
    """What `metrics.jsonl` has gained since the last look, for those who watch a run while it writes."""

    def __init__(self, path: Path) -> None:
        self._tail = LineTail(path)

    def read(self) -> list[dict[str, Any]]:
        """Steps not seen yet. All of them again once the file was replaced: a resumed run truncates it so."""
        return [json.loads(line) for line in self._tail.read()]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
