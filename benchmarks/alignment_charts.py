"""The pictures of `alignment.py`, one per claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {
    "pairs_taken_apart": "(a) pairs, and pairs taken apart into thumbs",
    "other_prompts": "(b) ups and downs on other prompts",
    "imbalance": "(c) from 1:9 to 9:1",
    "noise": "(d) wrong labels",
}
SHARE = "share of what the best policy gains"


def draw_all(found: dict[str, Any], directory: Path) -> None:
    """`alignment-<claim>.png` in `directory`."""
    for claim, title in TITLES.items():
        _draw_shares(found[claim], title, directory / f"alignment-{claim.replace('_', '-')}.png")
    _draw_bound(found["along_a_training"], directory / "alignment-along-a-training.png")


def _draw_shares(found: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """One setting: a bar per method; more: a line per method. Whiskers are 95 % intervals over seeds."""
    from alignment import interval
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    methods = list(next(iter(found.values())))
    if len(found) == 1:
        means, halves = zip(*(interval(next(iter(found.values()))[method]) for method in methods), strict=True)
        axes.bar(methods, means, yerr=halves, capsize=4, color="tab:blue", alpha=0.8)
        axes.tick_params(axis="x", rotation=20)
        axes.set_ylim(max(0, min(means) - 0.1), 1)
    else:
        for method in methods:
            means, halves = zip(*(interval(of[method]) for of in found.values()), strict=True)
            axes.errorbar(list(found), means, yerr=halves, label=method, marker="o", capsize=3)
        axes.legend()
    axes.set(title=title, ylabel=SHARE)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


def _draw_bound(found: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Means over seeds with their 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    bound, term, sides = figure.subplots(1, 3)
    for name in ("dpo", "bound with the shift", "bound without"):
        _draw_along(bound, found["bco"], name, name)
    for name in ("error term with the shift", "error term without"):
        _draw_along(term, found["bco"], name, name)
    _draw_along(sides, found["bco"], "delta", "BCO's delta")
    _draw_along(sides, found["kto"], "z_ref", "KTO's reference point")
    for axes, title in ((bound, "loss of BCO's policy"), (term, "what separates BCE from DPO"), (sides, "the middle")):
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _draw_along(axes: Any, along: dict[str, dict[str, list[float]]], name: str, label: str) -> None:
    from alignment import interval

    steps = [int(step) for step in along]
    middles, halves = zip(*(interval(row[name]) for row in along.values()), strict=True)
    axes.plot(steps, middles, label=label)
    around = list(zip(middles, halves, strict=True))
    axes.fill_between(steps, [m - h for m, h in around], [m + h for m, h in around], alpha=0.2)
