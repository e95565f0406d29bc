"""The report's charts: each fits a phone when alone, all of them fit one sheet. A chart without data is left out."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from bco_ray.evaluation.judging import wilson
from bco_ray.pipeline.printable import printable

GREY, BLUE, GREEN, RED, AMBER, INK = "#8a94a3", "#2f6fde", "#1f9d61", "#d64545", "#e0a030", "#1d2430"
MOST_BARS = 12
NAME_CHARACTERS = 26
FEWEST_USERS = 10
_UNNAMED = ("(none)", "(other)")

Row = Mapping[str, Any]
"""{key, ups, downs, up_rate} of a source, a model, or a day, week or month."""


@dataclass(frozen=True)
class Chart:
    """A title and what draws below it."""

    title: str
    draw: Callable[[Axes], None]


def charts_of(
    found: Mapping[str, Any], drops: Mapping[str, int], weight_bars: Sequence[tuple[float, int]]
) -> list[Chart]:
    """Those that have something to show. `found`: LogSums.summary()."""
    crowd = found["users"]["distinct"] >= FEWEST_USERS
    dated = [row for row in found["over_time"]["rates"] if row["key"] not in _UNNAMED]
    unit = found["over_time"]["unit"]
    lengths = found["length"]["completion"]
    charts = [
        (dated, Chart(f"Thumbs-up rate per {unit}", lambda axes: _over_time(axes, dated))),
        (_named(found["by_source"]), Chart("Thumbs-up rate by source", lambda a: _rates(a, found["by_source"]))),
        (_named(found["by_model"]), Chart("Thumbs-up rate by model", lambda a: _rates(a, found["by_model"]))),
        (found["rows"], Chart("Length of answers, characters", lambda a: _lengths(a, lengths))),
        (crowd, Chart("Share of votes cast by the busiest users", lambda a: _busiest(a, found["users"]))),
        (drops, Chart("Dropped, by reason", lambda a: _drops(a, drops))),
        (weight_bars, Chart("Density weights of votes", lambda a: _weights(a, weight_bars))),
    ]
    return [chart for data, chart in charts if data]


def picture(chart: Chart) -> bytes:
    """One chart as PNG, without its title."""
    figure = Figure(figsize=(6, 3.4), dpi=150, layout="constrained", facecolor="white")
    chart.draw(_clean(figure.subplots()))
    return _png(figure)


def sheet(charts: Sequence[Chart], headline: str) -> bytes:
    """All charts under one headline as PNG, two abreast."""
    rows = max(1, math.ceil(len(charts) / 2))
    figure = Figure(
        figsize=(12, 0.7 + 3.4 * rows),
        dpi=110,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12),
    )
    figure.suptitle(headline, fontsize=16, fontweight="bold", x=0.01, ha="left", color=INK)
    places = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, chart in zip(places, charts, strict=False):
        chart.draw(_clean(axes))
        axes.set_title(chart.title, loc="left", fontsize=12, color=INK, pad=10)
    for axes in places[len(charts) :]:
        axes.set_axis_off()
    return _png(figure)


def _named(rows: Sequence[Row]) -> bool:
    return any(row["key"] not in _UNNAMED for row in rows)


def _over_time(axes: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    bounds = [wilson(row["ups"], row["ups"] + row["downs"]) for row in rows]
    rates = [row["up_rate"] for row in rows]
    if len(rows) > 1:
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(places, lows, highs, color=GREEN, alpha=0.15, linewidth=0)
    axes.plot(places, rates, color=GREEN, marker="o", markersize=4 if len(rows) < 40 else 0)
    if len(rows) == 1:
        axes.vlines(0, *bounds[0], color=GREEN)
        axes.set_xlim(-1, 1)
    every = math.ceil(len(rows) / 7)
    axes.set_xticks(places[::every], [row["key"] for row in rows[::every]])
    share_axis(axes, "y")
    axes.set_ylim(0, 1)


def _rates(axes: Axes, rows: Sequence[Row]) -> None:
    """A dot and its interval per name, most votes on top, with the number of votes at the right."""
    shown = rows[:MOST_BARS]
    total_ups = sum(row["ups"] for row in rows)
    axes.axvline(total_ups / max(1, sum(row["ups"] + row["downs"] for row in rows)), color=GREY, ls=":", lw=1)
    for place, row in enumerate(shown):
        votes = row["ups"] + row["downs"]
        axes.hlines(place, *wilson(row["ups"], votes), color=BLUE, lw=5, alpha=0.3)
        axes.plot([row["up_rate"]], [place], "o", color=BLUE, markersize=6)
        axes.text(1.02, place, f"{votes:,}", transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=GREY)
    name_axis(axes, [row["key"] for row in shown])
    share_axis(axes, "x")
    axes.set_xlim(0, 1)


def _drops(axes: Axes, drops: Mapping[str, int]) -> None:
    shown = sorted(drops.items(), key=lambda item: (-item[1], item[0]))[:MOST_BARS]
    axes.barh(range(len(shown)), [count for _, count in shown], color=AMBER, height=0.6)
    for place, (_, count) in enumerate(shown):
        axes.text(count, place, f" {count:,}", va="center", fontsize=9, color=INK)
    name_axis(axes, [reason for reason, _ in shown])
    axes.set_xlim(0, 1.18 * max(count for _, count in shown))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _lengths(axes: Axes, lengths: Mapping[str, Mapping[str, Any]]) -> None:
    """Shares of each label's votes over bars of equal width on a logarithmic axis; empty answers stand at 1."""
    for side, label, colour in (("up", "thumbs-up", GREEN), ("down", "thumbs-down", RED)):
        bars = lengths[side]["bars"]
        total = sum(count for _, count in bars)
        if not total:
            continue
        edges, shares = _filled([(max(edge, 1), count / total) for edge, count in bars])
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.22)
        axes.stairs(shares, edges, color=colour, lw=1.5, label=f"{label} (median {lengths[side]['p50']:,})")
    _log_axis(axes)
    share_axis(axes, "y")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.margins(y=0.22)


def _filled(bars: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Edges (n + 1) and heights (n) over bars a factor 1.05^5 wide, those that are missing as 0."""
    width = 5 * math.log(1.05)
    heights: dict[int, float] = {}
    for edge, share in bars:
        place = round(math.log(edge) / width - 0.49) if edge > 1 else 0
        heights[place] = heights.get(place, 0.0) + share
    first, last = min(heights), max(heights)
    places = range(first, last + 1)
    return [math.exp(place * width) for place in range(first, last + 2)], [heights.get(place, 0.0) for place in places]


def _busiest(axes: Axes, users: Mapping[str, Any]) -> None:
    points = [(int(count), share) for count, share in users["top_share"].items() if int(count) <= users["distinct"]]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=5)
    for count, share in points:
        if count in (1, 10, 100):
            axes.annotate(f"{share:.0%}", (count, share), xytext=(0, 7), textcoords="offset points", ha="center",
                          fontsize=9, color=INK)  # fmt: skip
    _log_axis(axes)
    axes.set_xticks([count for count, _ in points], [str(count) for count, _ in points])
    share_axis(axes, "y")
    axes.set_ylim(0, 1.12)
    axes.set_xlabel(f"busiest users, of {users['distinct']:,}", fontsize=9, color=GREY)


def _weights(axes: Axes, bars: Sequence[tuple[float, int]]) -> None:
    """Bars begin at their edge and are as wide as the narrowest step between two; what begins at 0 stands leftmost."""
    edges = [edge for edge, _ in bars if edge > 0]
    factor = min((high / low for low, high in pairwise(edges)), default=1.25)
    for edge, count in bars:
        left = edge or min(edges, default=1.0) / factor
        axes.bar(left, count, width=left * (factor - 1), align="edge", color=BLUE, alpha=0.35)
    axes.axvline(1.0, color=GREY, ls=":", lw=1)
    _log_axis(axes)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("weight (1: as if not matched)", fontsize=9, color=GREY)


def name_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names downwards; a `$` in a name is no formula."""
    axes.set_yticks(range(len(names)), [printable(name, NAME_CHARACTERS) for name in names], parse_math=False)
    axes.set_ylim(max(len(names), 4) - 0.4, -0.6)


def share_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis=which, color="#e4e8ee", lw=0.8)


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 100 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axes.minorticks_off()


def _clean(axes: Axes) -> Axes:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c8ced8")
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.tick_params(axis="x", pad=6)
    axes.set_axisbelow(True)
    return axes


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that no installed font has
        figure.savefig(sink, format="png")
    return sink.getvalue()
