"""Ray and our loop beside a bare DeepSpeed script, on the same steps."""

from __future__ import annotations

import argparse
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table
from training_run import Bench

console = Console(stderr=True, width=160)
STEPS = 8
SIDES = ("script", "ray")
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}


def overhead(run: Bench, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size: the script, then the same under Ray Train."""
    steps = options.steps or STEPS
    task = run.task(size, steps, options.model and options.model.resolve())
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for round_number in range(options.rounds):
        for name in SIDES:
            console.print(f"{size}, round {round_number + 1} of {options.rounds}: {name}")
            rounds[name].append(run.measure(name, task, steps, round_number))
    seconds = {name: [seconds_per_step(name, one, run.device) for one in rounds[name]] for name in SIDES}
    difference = max(loss_difference(a, b) for a, b in zip(rounds["script"], rounds["ray"], strict=True))
    ratio = median(b / a for a, b in zip(seconds["script"], seconds["ray"], strict=True))
    table = Table("side", "seconds per step", title=f"{size}, ZeRO {run.zero_stage}, {run.precision}, {run.device}")
    for name in SIDES:
        table.add_row(name, f"{median(seconds[name]):.4f}")
    same = difference <= LOSS_TOLERANCE[run.precision]
    verdict = f"Ray and our loop take x{ratio:.3f} of the script's time per step"
    console.print(table, verdict if same else f"not the same steps: losses differ by {difference:.2g}")
    found = {"size": size, "loss_difference": difference, "seconds_per_step": seconds, "rounds": rounds}
    return found | ({"ray_by_script": ratio} if same else {})


def seconds_per_step(name: str, found: dict[str, Any], device: str) -> float:
    """Mean over the same windows on both sides.

    Our loop writes the time between two readings, and it reads a step once the next is launched. On a CPU that one is
    over by then, so row n holds the time of window n + 1 and the last row nothing; a GPU's launch takes no time.
    """
    windows = slice(1, -1)
    if name == "script" and device == "cpu":
        windows = slice(2, None)
    return float(mean(found["seconds"][windows]))


def loss_difference(script: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest over all steps."""
    return max(abs(float(a - b)) for a, b in zip(script["losses"], ours["losses"], strict=True))
