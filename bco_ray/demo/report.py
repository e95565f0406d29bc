"""What the demo shows at its end: one picture to understand at a glance, one HTML page to read."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bco_ray.demo.world import Sample
from bco_ray.pipeline.pages import templates

GREY, BLUE, GREEN, RED, AMBER = "#8a94a3", "#2f6fde", "#1f9d61", "#d64545", "#e0a030"

Metrics = Mapping[str, Any]
"""One line of metrics.jsonl."""


@dataclass(frozen=True)
class DemoRound:
    """One model and what it took to make it. The first round is the base: no votes, no metrics.

    `interval` is the 95 % one of the rate; `drops` counts refused votes by reason; `samples` are held-out answers.
    """

    name: str
    model_ref: str
    thumbs_up_rate: float
    interval: tuple[float, float]
    votes_read: int = 0
    votes_kept: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    metrics: Sequence[Metrics] = ()


@dataclass(frozen=True)
class DemoTotals:
    """`seconds` by phase; `model` is what is served in the end; `lineage` its ancestors, oldest first, itself last."""

    seconds: Mapping[str, float]
    model: str
    lineage: Sequence[str] = ()


@dataclass(frozen=True)
class BeforeAfter:
    """The same question put to the first and to the last model."""

    prompt: str
    before: Sample
    after: Sample


def draw(rounds: Sequence[DemoRound], path: str | Path) -> Path:
    """Write the picture as PNG; returns its path. Raises ValueError if there are no rounds."""
    if not rounds:
        raise ValueError("nothing to draw: the demo has no rounds")
    figure = Figure(figsize=(12, 7.2), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(_headline(rounds), fontsize=16, fontweight="bold", x=0.01, ha="left")
    rates, votes, loss, rewards = figure.subplots(2, 2, width_ratios=[1, 1.25]).T.flatten()
    _draw_rates(rates, rounds)
    _draw_votes(votes, rounds)
    _draw_curves(loss, rounds, {"loss": ("loss", BLUE)}, "Training loss")
    _draw_curves(
        rewards,
        rounds,
        {
            "rewards/chosen": ("liked answers", GREEN),
            "rewards/rejected": ("disliked answers", RED),
            "delta": ("shift δ between them", GREY),
        },
        "Implicit reward of liked and disliked answers (parting is learning)",
    )
    rewards.set_xlabel("optimiser step, all rounds")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return Path(path)


def write_html(rounds: Sequence[DemoRound], totals: DemoTotals, png: str | Path, path: str | Path) -> Path:
    """Write one self-contained page (the picture is inlined, nothing is fetched, all text escaped)."""
    environment = templates(Path(__file__).parent)
    page = environment.get_template("report.html").render(
        headline=_headline(rounds),
        rounds=rounds,
        totals=totals,
        total_seconds=sum(totals.seconds.values()),
        pairs=before_and_after(rounds),
        picture=base64.b64encode(Path(png).read_bytes()).decode("ascii"),
        drops=_drops(rounds),
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")
    return Path(path)


def before_and_after(rounds: Sequence[DemoRound]) -> list[BeforeAfter]:
    """Samples of the first and the last round that answer the same prompt, in the first round's order."""
    after = {sample.prompt: sample for sample in rounds[-1].samples}
    return [BeforeAfter(s.prompt, s, after[s.prompt]) for s in rounds[0].samples if s.prompt in after]


def _headline(rounds: Sequence[DemoRound]) -> str:
    first, last = rounds[0].thumbs_up_rate, rounds[-1].thumbs_up_rate
    if len(rounds) == 1:
        return f"{rounds[0].name}: {100 * first:.0f} % thumbs-up"
    return f"Thumbs-up rate from {100 * first:.0f} % to {100 * last:.0f} % ({100 * (last - first):+.0f} points)"


def _drops(rounds: Sequence[DemoRound]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for one in rounds:
        for reason, count in one.drops.items():
            totals[reason] = totals.get(reason, 0) + count
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _draw_rates(axes: Axes, rounds: Sequence[DemoRound]) -> None:
    rates = [one.thumbs_up_rate for one in rounds]
    below = [max(0.0, one.thumbs_up_rate - one.interval[0]) for one in rounds]
    above = [max(0.0, one.interval[1] - one.thumbs_up_rate) for one in rounds]
    colours = [GREY] + [GREEN if rate >= rates[0] else RED for rate in rates[1:]]
    axes.bar(range(len(rounds)), rates, yerr=[below, above], color=colours, width=0.6, capsize=6, ecolor="#222")
    for x, one in enumerate(rounds):
        axes.text(
            x, one.interval[1] + 0.02, f"{100 * one.thumbs_up_rate:.0f} %", ha="center", fontsize=13, fontweight="bold"
        )
    axes.axhline(rates[0], color=GREY, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(rounds)), [f"{one.name}\n{one.model_ref}" for one in rounds])
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _finish(axes, "Thumbs-up on prompts nobody voted on (95 % interval)")


def _draw_votes(axes: Axes, rounds: Sequence[DemoRound]) -> None:
    voted = [one for one in rounds if one.votes_read]
    kept = [one.votes_kept for one in voted]
    dropped = [one.votes_read - one.votes_kept for one in voted]
    axes.barh(range(len(voted)), kept, color=BLUE, height=0.5, label="kept")
    axes.barh(range(len(voted)), dropped, left=kept, color=AMBER, height=0.5, label="dropped, with a reason")
    for y, one in enumerate(voted):
        note = f"{one.votes_kept:,} kept · {one.votes_read - one.votes_kept:,} dropped"
        axes.text(0, y - 0.34, f" {note}", va="center")
    axes.set_yticks(range(len(voted)), [one.name for one in voted])
    axes.set_ylim(len(voted) - 0.4, -0.8)
    if voted:
        axes.legend(loc="upper right", ncols=2, frameon=False, bbox_to_anchor=(1, 1.02))
        axes.set_xlabel("votes")
    else:
        _say_empty(axes, "no votes yet")
    _finish(axes, "Votes read from the log")


def _draw_curves(axes: Axes, rounds: Sequence[DemoRound], series: Mapping[str, tuple[str, str]], title: str) -> None:
    """Each metric over the steps of all rounds, one after another, with a line where a round begins."""
    start = 0
    axes.margins(y=0.12)
    for one in rounds:
        steps = [record for record in one.metrics if "loss" in record]
        if not steps:
            continue
        labels = {} if start else {key: label for key, (label, _) in series.items()}
        for key, (_, colour) in series.items():
            points = _points(steps, key)
            axes.plot([start + x for x, _ in points], [y for _, y in points], color=colour, label=labels.get(key))
        axes.axvline(start, color="#cccccc", linewidth=1)
        axes.annotate(one.name, (start, 1), xycoords=("data", "axes fraction"), xytext=(4, -12),
                      textcoords="offset points", color=GREY, fontsize=9)  # fmt: skip
        start += len(steps)
    if start == 0:
        _say_empty(axes, "nothing was trained")
    elif len(series) > 1:
        axes.legend(frameon=False, loc="lower left")
    _finish(axes, title)


def _points(metrics: Sequence[Metrics], key: str) -> list[tuple[int, float]]:
    """(position, value) wherever `key` holds a finite number."""
    values = [(n, record.get(key)) for n, record in enumerate(metrics, 1)]
    return [(n, float(v)) for n, v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def _say_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color="#222")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
