"""What a person sees while work runs."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from bco_ray.telemetry import Pace, Phases, Progress
from bco_ray.telemetry import progress as drawn


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [
        (Progress(3), "3"),
        (Progress(3, 10), "3/10"),
        (Progress(1234567, 2000000), "1,234,567/2,000,000"),
        (Progress(120, 500, 12345.6, 200.4), "120/500 · 12,346 tokens/s · 0:03:20 left"),
        (Progress(1, 2, eta_seconds=90000), "1/2 · 1 day, 1:00:00 left"),
    ],
)
def test_progress_in_words(progress: Progress, wanted: str) -> None:
    assert str(progress) == wanted


def test_percent() -> None:
    assert Progress(30, 120).percent == 25
    assert Progress(30).percent is None
    assert Progress(0, 0).percent is None


def test_the_pace_is_that_of_the_work_done_here() -> None:
    """A run that finds 900 of 1000 done and then does 10 in 5 seconds has 45 to go, not less than one."""
    pace = Pace()
    assert pace.eta_seconds(100.0, 900, 1000) is None
    assert pace.eta_seconds(105.0, 910, 1000) == 45
    assert pace.eta_seconds(106.0, 1000, 1000) is None


def test_the_pace_forgets_what_was_long_ago() -> None:
    pace = Pace()
    for second in range(100):
        pace.eta_seconds(second, second, 2000)
    for second in range(100, 300):
        left = pace.eta_seconds(second, 100 + 4 * (second - 100), 2000)
    assert left == pytest.approx((2000 - 896) / 4)


def test_the_pace_of_rare_reports_spans_two_of_them() -> None:
    pace = Pace()
    for hour in range(4):
        left = pace.eta_seconds(3600.0 * hour, hour, 10)
    assert left == 7 * 3600


def test_no_pace_without_a_total_or_without_progress() -> None:
    pace = Pace()
    assert [pace.eta_seconds(now, now, None) for now in range(3)] == [None] * 3
    assert pace.eta_seconds(3, 0, 10) is None


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StringIO:
    """What telemetry prints; a terminal, or not."""
    out = StringIO()
    monkeypatch.setattr(drawn, "console", Console(file=out, force_terminal=request.param, width=160))
    monkeypatch.setattr(drawn, "SECONDS_BETWEEN_LINES", -1)
    return out


@pytest.mark.parametrize("screen", [True, False], ids=["terminal", "lines"], indirect=True)
def test_bar_and_lines_say_the_same(screen: StringIO) -> None:
    with Phases().phase("train") as report:
        report.show(Progress(120, 500, 12345, 200), "loss 0.5 [x]")
    assert "120/500 · 12,345 tokens/s · 0:03:20 left · loss 0.5 [x]" in screen.getvalue()
    assert "✓" in screen.getvalue()


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_a_phase_that_only_counts(screen: StringIO) -> None:
    phases = Phases()
    with phases.phase("score") as advance:
        advance(1, 4, "shard-0")
    assert screen.getvalue().startswith("  score 1/4 · shard-0\n✓ score")
    assert [time.name for time in phases.times] == ["score"]


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_quiet_is_quiet(screen: StringIO) -> None:
    with Phases(quiet=True).phase("score") as advance:
        advance(1, 4)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_with_json_lines_nothing_else_is_said(screen: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setenv("BCO_LOG_FORMAT", "json")
    monkeypatch.setattr(drawn.logger, "info", lambda text, *values: told.append(text % values))
    with Phases().phase("score") as advance:
        advance(1, 4, "shard-0")
    assert told[0] == "score 1/4 · shard-0"
    assert told[1].startswith("score 0.")
    assert screen.getvalue() == ""
