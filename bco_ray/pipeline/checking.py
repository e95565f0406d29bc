"""From settled records to a verdict: what `bco data check` shows, and what refuses a log before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bco_ray.errors import DataError
from bco_ray.feedback.statistics import LogSums
from bco_ray.pipeline.log import ResolvedLog
from bco_ray.pipeline.report import EXAMPLES_PER_REASON, CheckResult, examples_of
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.records import RecordsManifest


def check_result(
    log: ResolvedLog,
    records: RecordsManifest,
    *,
    ups_suffice: bool = False,
    more_drops: dict[str, int] | None = None,
    quarantine: Path | None = None,
) -> CheckResult:
    """What reading found. `ups_suffice`: of the loss it is for; `more_drops`: of a scoring run, the reading's too."""
    drops = more_drops if more_drops is not None else records.drops
    books = [directory for root in (log.directory / "quarantine", quarantine) if root for directory in _books(root)]
    examples: dict[str, list[dict[str, Any]]] = {}
    for directory in books:
        wanted = {reason: count for reason, count in drops.items() if reason not in examples}
        examples |= Quarantine(directory).examples_by_reason(EXAMPLES_PER_REASON, wanted)
    return CheckResult(
        files=[{"path": s.path, "format": s.format, "bytes": s.bytes} for s in log.sources],
        read=records.read,
        kept=records.read - sum(drops.values()),
        drops=drops,
        answers=records.answers,
        examples=examples_of(examples),
        statistics=LogSums.from_state(records.statistics).summary(),
        ups_suffice=ups_suffice,
    )


def require_usable(log: ResolvedLog, records: RecordsManifest, *, ups_suffice: bool) -> None:
    """Raises DataError, with every problem and the way out, if training on these votes would make no sense."""
    verdict = check_result(log, records, ups_suffice=ups_suffice).verdict
    if not verdict.usable:
        raise DataError(" ".join(verdict.problems) + f" Refused rows: {log.directory / 'quarantine'}.")


def _books(root: Path) -> list[Path]:
    """The directories of quarantine files below `root`, itself included."""
    return sorted({path.parent for path in root.rglob("*.parquet")}) if root.is_dir() else []
