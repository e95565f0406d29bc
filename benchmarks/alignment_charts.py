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


def _draw_bound(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    bound, term, sides = figure.subplots(1, 3)
    rows = found["bco"]
    steps = [row["step"] for row in rows]
    for name in ("dpo", "bound with the shift", "bound without"):
        bound.plot(steps, [row[name] for row in rows], label=name)
    for name in ("error term with the shift", "error term without"):
        term.plot(steps, [row[name] for row in rows], label=name)
    sides.plot(steps, [row["delta"] for row in rows], label="BCO's delta")
    sides.plot(steps, [row["z_ref"] for row in found["kto"]], label="KTO's reference point")
    for axes, title in ((bound, "loss of BCO's policy"), (term, "what separates BCE from DPO"), (sides, "the middle")):
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
