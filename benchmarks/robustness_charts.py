"""The picture of `robustness.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARE = "share of what the best policy gains"


def draw(found: dict[str, Any], path: Path) -> None:
    """Three panels: wrong labels, votes for length, votes of few people. Whiskers are 95 % intervals over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    noise, length, caps = figure.subplots(1, 3)
    _lines(noise, found["noise"], "wrong labels")
    pulled = {name: of for name, of in found["length"].items() if "worth" not in name}
    _lines(length, pulled, "votes pulled by length")
    _lines(caps, _by_cap(found["caps"]), "ten people cast three votes of five")
    noise.set_ylabel(SHARE)
    figure.savefig(path, dpi=110)


def _lines(axes: Any, found: dict[str, dict[str, list[float]]], title: str) -> None:
    """A line per method over the settings."""
    from alignment import interval

    for method in next(iter(found.values())):
        means, halves = zip(*(interval(of[method]) for of in found.values()), strict=True)
        axes.errorbar(list(found), means, yerr=halves, label=method, marker="o", capsize=3)
    axes.set_title(title)
    axes.legend(fontsize="small")
    axes.grid(axis="y", alpha=0.3)


def _by_cap(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Cap -> loss and taste -> numbers, from taste -> loss and cap -> numbers."""
    turned: dict[str, dict[str, list[float]]] = {}
    for taste, of in found.items():
        for method, values in of.items():
            loss, cap = method.split(", ")
            turned.setdefault(cap, {})[f"{loss}, {taste}"] = values
    return turned
