"""What a person sees while work runs: one logger, bars on stderr, and the progress value that jobs report.

stdout belongs to results (`--json` prints exactly one object there); everything here goes to stderr.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True)
logger = logging.getLogger("bco_ray")

Advance = Callable[[float, float | None, str], None]
"""`advance(done, total, note)`: total None means unknown."""


def configure_logging(level: str = "INFO") -> None:
    """Send our log lines to stderr, once; libraries stay at WARNING."""
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


@dataclass(frozen=True)
class PhaseTime:
    """How long one named phase took."""

    name: str
    seconds: float


class Phases:
    """Runs named phases one after another, each with a bar, and remembers how long each took."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.times: list[PhaseTime] = []
        self._quiet = quiet

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase name; a phase that ran twice is summed."""
        totals: dict[str, float] = {}
        for t in self.times:
            totals[t.name] = round(totals.get(t.name, 0.0) + t.seconds, 2)
        return totals

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """A bar for `name`; the body calls `advance(done, total, note)` as it goes."""
        start = time.monotonic()
        with self._bar() as bar:
            task = bar.add_task(name, total=None, note="")

            def advance(done: float, total: float | None = None, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield advance
            bar.update(task, total=1, completed=1)
        self.times.append(PhaseTime(name, time.monotonic() - start))
        if not self._quiet:
            console.print(f"[green]✓[/] {name} [dim]{self.times[-1].seconds:.1f} s[/]")

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            disable=self._quiet,
        )
