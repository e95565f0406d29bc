"""What a person sees while work runs: bars and lines on stderr, and the progress value that jobs report."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import rich.markup
import rich.progress
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn

from bco_ray.telemetry.logs import in_json, logger
from bco_ray.telemetry.traces import span

console = Console(stderr=True)

SECONDS_BETWEEN_LINES = 15
"""How often a phase says how far it is where there is no terminal to draw a bar on."""

PACE_SECONDS = 60
"""How far back a phase looks to tell when it will be done."""

Advance = Callable[[float, float | None, str], None]
"""`advance(done, total, note)`: total None means unknown."""


def tell(line: str, *, drawn: str | None = None) -> None:
    """A line on stderr, `drawn` in rich's markup if there is that; where log lines are JSON it is one of them."""
    if in_json():
        logger.info("%s", line.strip())
    else:
        console.print(line if drawn is None else drawn, highlight=False, markup=drawn is not None, soft_wrap=True)


@dataclass(frozen=True)
class PhaseTime:
    """How long one named phase took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a phase is, in units of its own (steps, rows); None: not known. Bars and lines say what `str` says."""

    done: float
    total: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None

    @property
    def percent(self) -> float | None:
        """From 0 to 100."""
        return 100 * self.done / self.total if self.total else None

    def __str__(self) -> str:
        parts = [f"{self.done:,.9g}/{self.total:,.9g}" if self.total else f"{self.done:,.9g}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.eta_seconds is not None:
            parts.append(f"{timedelta(seconds=round(self.eta_seconds))} left")
        return " · ".join(parts)


class Pace:
    """When work will be done, from what was done lately: what an earlier run had done already does not count."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def eta_seconds(self, now: float, done: float, total: float | None) -> float | None:
        """None before anything was done, and when it is all done."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - PACE_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        if total is None or done >= total or done <= before:
            return None
        return (total - done) * (now - began) / (done - before)


class Reporter:
    """What the body of a phase calls: `advance(done, total, note)`, or `show` when it knows more than that."""

    def __init__(self, draw: Callable[[Progress, str], None]) -> None:
        self._draw = draw
        self._pace = Pace()
        self.note = ""

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        self.show(Progress(done, total, eta_seconds=self._pace.eta_seconds(time.monotonic(), done, total)), note)

    def show(self, progress: Progress, note: str = "") -> None:
        """The last `note` stays when the phase is over."""
        self.note = note
        self._draw(progress, note)


Told = Callable[[str, Progress, str], None]
"""`told(phase, progress, note)`."""


class Phases:
    """Runs named phases one after another, each with a bar, and remembers how long each took.

    `told` hears whenever a phase begins or gets on.
    """

    def __init__(self, *, quiet: bool = False, told: Told = lambda *_: None) -> None:
        self.times: list[PhaseTime] = []
        self._quiet = quiet
        self._told = told

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase name; a phase that ran twice is summed."""
        totals: dict[str, float] = {}
        for t in self.times:
            totals[t.name] = round(totals.get(t.name, 0.0) + t.seconds, 2)
        return totals

    @contextmanager
    def phase(self, name: str) -> Iterator[Reporter]:
        """A bar on a terminal, a line now and then elsewhere."""
        start = time.monotonic()
        with self._bar() as bar, span(name):
            task = bar.add_task(name, total=None, text="")
            line_at = start

            def draw(progress: Progress, note: str) -> None:
                nonlocal line_at
                self._told(name, progress, note)
                text = f"{progress} · {note}" if note else str(progress)
                bar.update(task, completed=progress.done, total=progress.total, text=text)
                if self._as_lines and time.monotonic() - line_at > SECONDS_BETWEEN_LINES:
                    line_at = time.monotonic()
                    tell(f"  {name} {text}")

            self._told(name, Progress(0), "")
            report = Reporter(draw)
            yield report
        self.times.append(PhaseTime(name, time.monotonic() - start))
        if not self._quiet:
            took = f"{self.times[-1].seconds:.1f} s  {report.note}"
            tell(f"{name} {took}", drawn=f"[green]✓[/] {name} [dim]{rich.markup.escape(took)}[/]")

    @property
    def _as_lines(self) -> bool:
        return not self._quiet and not console.is_terminal

    def _bar(self) -> rich.progress.Progress:
        return rich.progress.Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            console=console,
            transient=True,
            disable=self._quiet or not console.is_terminal,
        )
