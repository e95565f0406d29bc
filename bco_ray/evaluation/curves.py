"""A run's training curves as one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bco_ray.storage import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Values = npt.NDArray[np.float64]

SMOOTHED_FROM = 60
"""Steps; a shorter run is drawn as it is."""

WINDOWS = 20
"""A longer one is smoothed over this part of itself."""

Panels = Sequence[tuple[str, Mapping[str, str]]]
"""Title, and label and metric of each line; four or nine of them."""

PANELS: Panels = (
    ("loss", {"loss": "loss"}),
    ("implicit reward", {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "delta": "delta"}),
    ("telling the classes apart", {"AUC": "auc", "accuracy at delta": "rewards/accuracies"}),
    ("KL estimate (nats)", {"KL estimate": "kl"}),
    ("error term", {"error term": "error_term"}),
    ("share of the gradient", {"chosen": "grad_share/chosen", "rejected": "grad_share/rejected"}),
    ("effective share of rows", {"chosen": "ess/chosen", "rejected": "ess/rejected"}),
    ("gradient norm", {"gradient norm": "grad_norm"}),
    ("tokens per second", {"tokens/s": "tokens_per_second"}),
)
COLOURS = {"chosen": "tab:blue", "rejected": "tab:orange", "delta": "tab:green"}


def draw_curves(metrics: Sequence[Row], path: Path, *, title: str, panels: Panels = PANELS) -> None:
    """A square of panels over optimizer steps; a value that was absent (null) is a gap."""
    import matplotlib.figure
    from matplotlib.ticker import MaxNLocator

    side = math.isqrt(len(panels))
    figure = matplotlib.figure.Figure(figsize=(14 / 3 * side, 3 * side), layout="constrained")
    figure.suptitle(title)
    steps = np.array([row["step"] for row in metrics])
    for axes, (name, lines) in zip(figure.subplots(side, side, sharex=True).flat, panels, strict=True):
        for label, key in lines.items():
            _draw(axes, steps, series(metrics, key), label)
        axes.set_title(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in figure.axes[-side:]:
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    files.write_bytes(path, drawn.getvalue())


def series(metrics: Sequence[Row], key: str) -> Values:
    """One metric's value per step, NaN where it is absent. The rejected rows' share of the gradient is the rest."""
    if key == "grad_share/rejected":
        return 1 - series(metrics, "grad_share/chosen")
    return np.array([np.nan if row.get(key) is None else row[key] for row in metrics], dtype=np.float64)


def smoothed(values: Values) -> Values:
    """Means over the steps around each, fewer at both ends; a gap where less than a quarter of those have a value."""
    half = len(values) // (2 * WINDOWS)
    there = np.isfinite(values)
    totals, counts = _sums_around(np.where(there, values, 0.0), half), _sums_around(there.astype(float), half)
    enough = counts >= np.maximum(1, _sums_around(np.ones(len(values)), half) / 4)
    return np.where(enough, totals / np.maximum(1, counts), np.nan)


def _sums_around(values: Values, half: int) -> Values:
    """Of each value and up to `half` on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    around: Values = sums[np.minimum(at + half + 1, len(values))] - sums[np.maximum(at - half, 0)]
    return around


def _draw(axes: Axes, steps: npt.NDArray[Any], values: Values, label: str) -> None:
    """Points of a short run; of a long one the raw values faint below a smoothed line."""
    colour = COLOURS.get(label)
    if len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, label=label, color=colour, linewidth=1.5, marker="o", markersize=3)
        return
    (line,) = axes.plot(steps, smoothed(values), label=label, color=colour, linewidth=1.8, zorder=3)
    axes.plot(steps, values, color=line.get_color(), linewidth=0.6, alpha=0.25, marker=".", markersize=1.5)
