"""Whether two sides did the same work, and how they compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

LOGP_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
FIRST_LOSS = {"bco": math.log(2), "kto": 0.5}
"""BCO's -log sigmoid(0) and KTO's 1 - sigmoid(0): before the first update every reward is 0."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """Whether a side did the window it was given. `logp_difference`: the largest, relative, to our reference column."""

    problems: list[str]
    first_loss: float
    logp_difference: float


def check_ours(found: Found, task: Found, precision: str) -> Check:
    """Our loss, and the mean log-probability per class against the column that TRL's rows are compared with too."""
    means, problems = found["first_means"], []
    difference = 0.0
    for label, name in ((True, "chosen"), (False, "rejected")):
        column = zip(task["first_rows"], task["first_logps"], strict=True)
        logps = [logp for row, logp in column if row["label"] is label]
        difference = max(difference, abs(means[f"logps/{name}"] * len(logps) / sum(logps) - 1))
        if abs(means[f"rewards/{name}"]) > LOSS_TOLERANCE[precision]:
            problems.append(f"reward of {name} is {means[f'rewards/{name}']:.2g} before the first update")
    return _judged(problems, found["first_loss"], FIRST_LOSS["bco"], difference, precision)


def check_trl(found: Found, task: Found, precision: str, loss: str) -> Check:
    """Row by row: the same ids, as many of them scored, and the same log-probability."""
    differing = sum(
        any(ours[name] != theirs[name] for name in ("tokens", "scored", "ids"))
        for ours, theirs in zip(task["first_rows"], found["first_rows"], strict=True)
    )
    problems = [f"{differing} rows have other tokens"] if differing else []
    pairs = zip(task["first_logps"], found["first_logps"], strict=True)
    differences = [abs(theirs / ours - 1) for ours, theirs in pairs]
    difference = math.inf if any(map(math.isnan, differences)) else max(differences)  # max passes over NaN
    return _judged(problems, found["first_loss"], FIRST_LOSS[loss], difference, precision)


def _judged(problems: list[str], loss: float, expected: float, difference: float, precision: str) -> Check:
    if abs(loss - expected) > LOSS_TOLERANCE[precision]:
        problems.append(f"first loss {loss:.6f}, expected {expected:.6f}")
    if not difference <= LOGP_TOLERANCE[precision]:
        problems.append(f"log-probabilities differ by {difference:.2g}, allowed {LOGP_TOLERANCE[precision]:.0e}")
    return Check(problems, loss, difference)


def figures(found: Found, task: Found, matmul: Found, precision: str, device: str) -> dict[str, float]:
    """One measurement as rates. Shares are of the same round's matmul rate: per CPU second, on a GPU per second."""
    steps = slice(1, 1 + found["steps"])
    tokens, flops = sum(task["tokens"][steps]), sum(task["flops"][steps])
    clock = "wall" if device == "cuda" else "cpu"
    return {
        "tokens_per_cpu_second": tokens / found["cpu_seconds"],
        "tokens_per_second": tokens / found["wall_seconds"],
        "peak_mib": found["peak_mib"],
        "added_mib": found["peak_mib"] - found["loaded_mib"],
        "share_of_peak": flops / found[f"{clock}_seconds"] / matmul[precision][clock],
    } | ({"cuda_peak_mib": found["cuda_peak_mib"]} if found["cuda_peak_mib"] else {})


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the rounds."""
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds of ours / theirs, each within its round."""
    rounds = [{name: a[name] / b[name] for name in a} for a, b in zip(ours, theirs, strict=True)]
    return medians(rounds)


COLUMNS = {
    "tokens_per_cpu_second": "tokens/CPU-s",
    "tokens_per_second": "tokens/s",
    "peak_mib": "peak MiB",
    "added_mib": "added MiB",
    "cuda_peak_mib": "CUDA peak MiB",
}


def reached(title: str, sides: dict[str, list[dict[str, float]]], checks: dict[str, Check]) -> Table:
    """Medians of what each side came to."""
    known = [name for name in COLUMNS if name in sides["ours"][0]]
    columns = [COLUMNS[name] for name in known]
    table = Table("side", *columns, "share of matmul peak", "first loss", "log-prob. off by", title=title)
    for name, rounds in sides.items():
        found, check = medians(rounds), checks[name]
        cells = [f"{found[one]:,.0f}" for one in known]
        loss, off = f"{check.first_loss:.6f}", f"{check.logp_difference:.1e}"
        table.add_row(name, *cells, f"{found['share_of_peak']:.3f}", loss, off)
    return table


def compared(title: str, sides: dict[str, list[dict[str, float]]], checks: dict[str, Check]) -> Table:
    """Ours by theirs; for a side that did other work the reason in place of numbers."""
    known = [name for name in COLUMNS if name in sides["ours"][0]]
    table = Table("ours / side", *(COLUMNS[name] for name in known), title=title)
    for name, rounds in sides.items():
        if name == "ours":
            continue
        if problems := checks["ours"].problems + checks[name].problems:
            table.add_row(name, "not the same work: " + "; ".join(problems))
            continue
        found = ratios(sides["ours"], rounds)
        table.add_row(name, *(f"x{found[one]:.2f}" for one in known))
    return table
