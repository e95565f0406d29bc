"""Predictions beside what was measured: all of it on a CPU, one or two workers, one machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from scale_costs import RESULTS, Job
from scale_limits import host_seconds_per_row

STATED_FACTOR = 1.8
"""No prediction is further off. Nothing here went over a wire between machines, or to a GPU."""


@dataclass(frozen=True)
class Compared:
    """`factor`: how far off, 1 for not at all, whichever is larger."""

    what: str
    predicted: float
    measured: float
    unit: str

    @property
    def factor(self) -> float:
        """At least 1."""
        return max(self.predicted / self.measured, self.measured / self.predicted)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _trl(size: str) -> Any:
    return _read(f"training-trl-cpu-fp32-{size}")["found"][0]


def _per_token(found: Any) -> float:
    return float(sum(found["flops"]) / sum(found["tokens"]))


def flops_per_second() -> float:
    """The one figure all predictions take: what the 25m run came to, per CPU second."""
    found = _trl("25m")
    return float(found["medians"]["ours"]["tokens_per_cpu_second"] * _per_token(found))


def comparisons() -> list[Compared]:
    """The step's model (FLOPs at one speed, rows shared out evenly, the host's work per row) on other runs."""
    speed, gangs = flops_per_second(), _read("scale-inputs")["gangs"]
    found = [
        Compared(f"{size}, 1 worker", speed / _per_token(_trl(size)), _tokens_per_second(size), "tokens per CPU-s")
        for size in ("small", "90m")
    ]
    bare = _read("training-deepspeed-cpu-fp32-small")
    rows = bare["command"]["window_rows"] / _read("training-trl-cpu-fp32-small")["command"]["window_rows"]
    seconds = rows * mean(_trl("small")["flops"]) / speed
    measured = median(bare["found"][0]["seconds_per_step"]["ray"])
    found.append(Compared("small, ZeRO 1 under Ray, 1 worker", seconds, measured, "s per step"))
    flops, tokens = median(gangs["window_flops"]), median(gangs["window_tokens"])
    host = gangs["window_rows"] * host_seconds_per_row(Job(mean_tokens=tokens / gangs["window_rows"]))
    for workers, name in ((1, "1 worker"), (2, "2 workers")):
        busiest = gangs[str(workers)]["cpu_seconds_per_step"]
        predicted = flops / workers / speed + host
        found.append(Compared(f"small, ZeRO 0 on gloo, {name}", predicted, busiest, "CPU-s per step"))
    one, two = (gangs[str(n)]["cpu_seconds_per_step"] for n in (1, 2))
    found.append(
        Compared("the same, 1 worker by 2", (flops / speed + host) / (flops / 2 / speed + host), one / two, "times")
    )
    return found


def _tokens_per_second(size: str) -> float:
    return float(_trl(size)["medians"]["ours"]["tokens_per_cpu_second"])
