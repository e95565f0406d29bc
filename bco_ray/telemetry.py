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

SECONDS_BETWEEN_LINES = 15
"""How often a phase says how far it is where there is no terminal to draw a bar on."""

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


@dataclass
class _Reported:
    at: float
    note: str = ""


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
        """A bar on a terminal, a line now and then elsewhere; the body calls `advance(done, total, note)`."""
        start = time.monotonic()
        last = _Reported(at=start)
        with self._bar() as bar:
            task = bar.add_task(name, total=None, note="")

            def advance(done: float, total: float | None = None, note: str = "") -> None:
                last.note = note
                bar.update(task, completed=done, total=total, note=note)
                if self._as_lines and time.monotonic() - last.at > SECONDS_BETWEEN_LINES:
                    last.at = time.monotonic()
                    console.print(f"  {name} {done:g}{f'/{total:g}' if total else ''} {note}", highlight=False)

            yield advance
            bar.update(task, total=1, completed=1)
        self.times.append(PhaseTime(name, time.monotonic() - start))
        if not self._quiet:
            console.print(f"[green]✓[/] {name} [dim]{self.times[-1].seconds:.1f} s  {last.note}[/]", highlight=False)

    @property
    def _as_lines(self) -> bool:
        return not self._quiet and not console.is_terminal

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
            disable=self._quiet or not console.is_terminal,
        )
