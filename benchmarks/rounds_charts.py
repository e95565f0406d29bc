"""The picture of `rounds.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = {
    "moved, new votes alone": ("tab:red", "-"),
    "moved, whole log": ("tab:orange", "-"),
    "kept, new votes alone": ("tab:blue", "-"),
    "kept, older 0.25": ("tab:green", "-"),
    "kept, older 0.5, half-life 28 days": ("tab:green", "--"),
    "kept, whole log": ("tab:purple", "-"),
    "kept, whole log, half-life 28 days": ("tab:purple", "--"),
}
PANELS = {"share_of_best": "share of what the best policy gains", "kl": "KL from the first reference, nats",
          "entropy": "entropy of an answer, nats"}  # fmt: skip


def draw(found: dict[str, Any], path: Path) -> None:
    """A row per scenario, a column per metric; bands are 95 % intervals over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, len(PANELS))
    for row, scenario in enumerate(("stays", "drifts")):
        for column, (metric, title) in enumerate(PANELS.items()):
            panel = axes[row, column]
            for name, (color, style) in SHOWN.items():
                means, halves = zip(*found[scenario][name][metric], strict=True)
                weeks = range(len(means))
                panel.plot(weeks, means, color=color, linestyle=style, label=name)
                lower, upper = ([m + s * h for m, h in zip(means, halves, strict=True)] for s in (-1, 1))
                panel.fill_between(weeks, lower, upper, color=color, alpha=0.12, linewidth=0)
            panel.set(title=f"what users want {scenario}: {title}", xlabel="week")
            panel.title.set_fontsize("small")
            panel.grid(alpha=0.3)
            if metric == "share_of_best":
                panel.set_ylim(-0.5, 1)
    axes[0, 1].legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
