"""A run's training curves as one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PANELS = (
    ("loss", ("loss",)),
    ("implicit reward", ("rewards/chosen", "rewards/rejected", "delta")),
    ("accuracy at delta", ("rewards/accuracies",)),
    ("gradient norm", ("grad_norm",)),
)


def draw_curves(metrics: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Four panels over optimizer steps; a value that was absent (null) is a gap."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, keys) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for key in keys:
            values = [float("nan") if row.get(key) is None else row[key] for row in metrics]
            axes.plot([row["step"] for row in metrics], values, label=key, linewidth=1.5)
        axes.set_title(name)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend()
    figure.savefig(path, dpi=110)
