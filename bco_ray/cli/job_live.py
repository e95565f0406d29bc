"""A job while it is followed: a display that redraws itself on a terminal, lines now and then elsewhere. On stderr."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bco_ray.cli.job_view import clean, duration, event_line, metrics_line, metrics_of, standing, status_of, troubles
from bco_ray.telemetry import SECONDS_BETWEEN_LINES

Json = dict[str, Any]

_PLOTS = {"loss": "loss", "rewards/margins": "reward margin"}
_PLOT_WIDTH, _PLOT_HEIGHT = 60, 10
_BAR_WIDTH = 30


class Screen(AbstractContextManager["Screen"]):
    """What to call with each look at a job; `rows` are the steps told so far."""

    def __init__(self, console: Console) -> None:
        self.rows: list[Json] = []
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: tuple[Any, ...] = ()
        self._line, self._line_at = "", 0.0

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, job: Json, news: list[Json]) -> None:
        """Warnings and errors stay above the display."""
        self.rows += metrics_of(news)
        for event in news:
            if event["level"] in {"warn", "error"}:
                self.say(event_line(event))
        if self._live:
            self._live.update(picture(job, self.rows, self._console.width), refresh=True)
        else:
            self._tell(job)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _tell(self, job: Json) -> None:
        """A new state at once, mere progress now and then."""
        state = (job["status"], (job.get("status_details") or {}).get("phase"), *troubles(job))
        line = standing(job, self.rows[-1] if self.rows else {})
        waited = time.monotonic() - self._line_at > SECONDS_BETWEEN_LINES
        if state != self._told or (waited and line != self._line):
            self._told, self._line, self._line_at = state, line, time.monotonic()
            self.say(f"{clean(job['id'])}  {line}")


def picture(job: Json, rows: list[Json], width: int) -> RenderableType:
    """All of it, at most `width` columns."""
    parts: list[RenderableType] = [Text(f"{clean(job['id'])}  {status_of(job)}", style="bold"), _progress(job)]
    parts += [Text(trouble, style="yellow") for trouble in troubles(job)]
    if rows:
        parts.append(Text(metrics_line(rows[-1])))
        parts.append(Columns([plot for key in _PLOTS if (plot := curve(rows, key, width))], padding=(0, 1)))
    return Group(*parts)


def curve(rows: list[Json], key: str, width: int) -> Text | None:
    """One metric over the steps, in characters; None with fewer than two values. Its colour is rich's to leave out."""
    import plotext

    points = [(row["step"], row[key]) for row in rows if key in row]
    if len(points) < 2:
        return None
    figure = plotext.figure
    plotext.terminal.limit(False, False)
    figure.clear()
    figure.plot_size(min(_PLOT_WIDTH, width), _PLOT_HEIGHT)
    figure.theme("colorless")
    figure.title(_PLOTS[key])
    steps, values = zip(*points, strict=True)
    figure.draw(figure.signal(steps, values, marker="braille").lines())
    return Text(figure.build().string(colorless=True).rstrip("\n"), style="cyan", no_wrap=True)


def _progress(job: Json) -> RenderableType:
    details = job.get("status_details") or {}
    percent, step, eta = (details.get(name) for name in ("percent", "step", "eta_seconds"))
    words = [f"{percent:.0f}%"] if percent is not None else []
    words += [f"step {step}/{details.get('total_steps') or '?'}"] if step is not None else []
    words += [f"{duration(eta)} left"] if eta is not None and job["status"] == "running" else []
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=100, completed=percent or 0, width=_BAR_WIDTH)
    row.add_row(Text(clean(details.get("phase") or "")), bar, "  ".join(words))
    return row
