"""What came out of `closed_loop.py`: satisfaction per round with intervals, a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bco_ray.evaluation.judging import wilson

Row = dict[str, Any]
"""One round of one arm and seed."""

COLOURS = {
    "none": "#8a94a3",
    "bco": "#2f6fde",
    "kto": "#e0a030",
    "bco, not matched": "#1f9d61",
    "bco, moved reference": "#c2452d",
    "bco, all votes": "#8e5bd6",
}
SURE = 0.95


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, and its 95 % interval by Student's t; one seed has none."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = float(t.ppf((1 + SURE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summary(rows: Sequence[Row]) -> list[Row]:
    """By arm and round: mean over seeds, its interval (t), and that of the pooled answers (Wilson, binomial)."""
    found = []
    for arm, number in sorted({(row["arm"], row["round"]) for row in rows}, key=_order):
        group = [row for row in rows if (row["arm"], row["round"]) == (arm, number)]
        mean, low, high = over_seeds([row["satisfaction"] for row in group])
        liked, asked = (sum(row[name] for row in group) for name in ("liked", "users"))
        found.append(
            {"arm": arm, "round": number, "seeds": len(group), "mean": mean, "low": low, "high": high,
             "binomial": wilson(liked, asked)}
        )  # fmt: skip
    return found


def _order(key: tuple[str, int]) -> tuple[int, int]:
    return list(COLOURS).index(key[0]), key[1]


def differences(rows: Sequence[Row], one: str, other: str) -> list[Row]:
    """By round: satisfaction with `one` less that with `other`, paired over the seeds that have both, and its t."""
    at = {(row["arm"], row["seed"], row["round"]): row["satisfaction"] for row in rows}
    found = []
    for number in sorted({row["round"] for row in rows}):
        seeds = [seed for arm, seed, n in at if (arm, n) == (one, number) and (other, seed, number) in at]
        if seeds:
            mean, low, high = over_seeds([at[one, s, number] - at[other, s, number] for s in seeds])
            found.append({"round": number, "seeds": len(seeds), "mean": mean, "low": low, "high": high})
    return found


def table(found: Sequence[Row]) -> str:
    """Markdown, in percent: a row per round, a column per arm."""
    arms = list(dict.fromkeys(row["arm"] for row in found))
    cells = {(row["arm"], row["round"]): _cell(row) for row in found}
    lines = [f"| after rounds | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for number in sorted({row["round"] for row in found}):
        lines.append(f"| {number} | {' | '.join(cells.get((arm, number), '') for arm in arms)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    half = "" if row["high"] is None else f" ± {100 * (row['high'] - row['mean']):.1f}"
    return f"{100 * row['mean']:.1f}{half}"


def draw(rows: Sequence[Row], found: Sequence[Row], path: Path) -> None:
    """A line per arm: whiskers of the pooled answers, a band over seeds if there are several, seeds as thin lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(dict.fromkeys(row["arm"] for row in found)):
        _draw_arm(axes, [row for row in found if row["arm"] == arm], COLOURS[arm], 0.03 * place)
        for line in _by_seed([row for row in rows if row["arm"] == arm]):
            axes.plot(*zip(*line, strict=True), color=COLOURS[arm], linewidth=0.6, alpha=0.6)
    axes.set(
        xlabel="rounds trained",
        ylabel="share of answers that users like",
        ylim=(0, 1),
        xticks=sorted({row["round"] for row in found}),
    )
    axes.set_title("Satisfaction per round (95 %: whiskers binomial, bands over seeds)", loc="left", fontsize=11)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _draw_arm(axes: Any, mine: Sequence[Row], colour: str, aside: float) -> None:
    rounds, means = [row["round"] + aside for row in mine], [row["mean"] for row in mine]
    pooled = [[abs(row["mean"] - row["binomial"][side]) for row in mine] for side in (0, 1)]
    seeds = max(row["seeds"] for row in mine)
    name = f"{mine[0]['arm']} ({seeds} seed{'s' if seeds > 1 else ''})"
    axes.errorbar(rounds, means, yerr=pooled, marker="o", color=colour, label=name, linewidth=2, capsize=3)
    band = [row for row in mine if row["low"] is not None]
    low, high = ([min(1.0, max(0.0, row[side])) for row in band] for side in ("low", "high"))
    axes.fill_between([row["round"] + aside for row in band], low, high, color=colour, alpha=0.15)


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, float]]]:
    seeds = dict.fromkeys(row["seed"] for row in rows)
    if len(seeds) < 2:
        return []
    return [sorted((row["round"], row["satisfaction"]) for row in rows if row["seed"] == seed) for seed in seeds]
