"""When votes were cast, in UTC: by day or by week, where a log is too short for months to say much."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bco_ray.feedback.sketches import HeavyKeys, Votes

NONE = "(none)"
"""The key of what names none."""

MOST_DAYS = 31
MOST_WEEKS = 26
_YEAR_10000 = 253_402_300_800

Unit = Literal["day", "week"]


def days(seconds: pa.ChunkedArray) -> list[str | None]:
    """`2025-03-14` for unix seconds; None for null, NaN and what lies outside the years 1970 to 9999."""
    times = pc.fill_null(seconds, float("nan")).to_numpy()
    good = (times >= 0) & (times < _YEAR_10000)
    names = np.where(good, times, 0).astype("datetime64[s]").astype("datetime64[D]").astype(str)
    return [name if ok else None for name, ok in zip(names.tolist(), good.tolist(), strict=True)]


def closer_than_months(by_day: HeavyKeys, all_votes: Votes) -> tuple[Unit, dict[str, Votes]] | None:
    """The votes of each day or week (named by its Monday); None of a long log, or if some vote's day is not known."""
    found = dict(by_day.heaviest())
    dates = [date.fromisoformat(day) for day in found if day != NONE]
    if not dates or _sum(found) != all_votes:
        return None
    span = (max(dates) - min(dates)).days + 1
    if span <= MOST_DAYS:
        return "day", found
    return ("week", _by_week(found)) if span <= 7 * MOST_WEEKS else None


def _by_week(by_day: Mapping[str, Votes]) -> dict[str, Votes]:
    weeks: dict[str, Votes] = {}
    for day, (ups, downs) in by_day.items():
        key = day if day == NONE else _monday(date.fromisoformat(day)).isoformat()
        before = weeks.get(key, (0, 0))
        weeks[key] = (before[0] + ups, before[1] + downs)
    return weeks


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _sum(found: Mapping[str, Votes]) -> Votes:
    return sum(ups for ups, _ in found.values()), sum(downs for _, downs in found.values())
