"""The picture of `real_votes.py`: one bar per judge, whiskers are 95 % intervals, dots are seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(found: dict[str, Any], path: Path) -> None:
    """One log and one way of holding out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * len(found["judges"]) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, (name, judge) in enumerate(reversed(found["judges"].items())):
        mean = judge["auc"]
        color = "tab:blue" if "reward" in name else "tab:gray"
        axes.barh(place, mean["value"] - 0.5, left=0.5, color=color, alpha=0.6)
        axes.plot(list(judge["seeds"].values()), [place] * len(judge["seeds"]), "k.", markersize=4)
        if mean["low"] is not None:
            axes.plot([mean["low"], mean["high"]], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(found["judges"])), list(reversed(found["judges"])))
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set(xlabel="AUC on held-out votes", title=f"{found['name']}, held out by {found['split']}")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
