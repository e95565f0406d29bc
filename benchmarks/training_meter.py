"""What one measured process writes down: CPU seconds, wall seconds and memory. Needs torch only; both sides use it.

Peak memory is VmHWM, cleared once the model is loaded. ru_maxrss would be the same number, but a child begins with its
parent's, and loading the file may need more than training does.
"""

from __future__ import annotations

import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20


class StepsDone(BaseException):
    """Raised in a step hook to end a run without checkpoint and export. No error, so nobody on the way catches it."""


class Meter:
    """Counts from the end of the first step to the end of the last; the first one pays for warming up."""

    def __init__(self, *, steps: int, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.steps = steps
        self.cuda = device == "cuda"
        self.loaded_mib = 0.0
        self.marks: list[tuple[float, float]] = []
        self.done = 0

    def loaded(self) -> None:
        """The model is in memory and nothing else yet: what comes on top is added by training."""
        self.loaded_mib = status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> None:
        """An optimizer step is over. The device is waited for at the two ends only, so that steps may overlap."""
        self.done += 1
        if self.done in (1, self.steps):
            if self.cuda:
                torch.cuda.synchronize()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            self.marks.append((time.perf_counter(), usage.ru_utime + usage.ru_stime))

    def figures(self) -> dict[str, Any]:
        """Seconds over all steps but the first, and MiB."""
        (wall, cpu), (wall_end, cpu_end) = self.marks
        return {
            "steps": self.steps - 1,
            "wall_seconds": wall_end - wall,
            "cpu_seconds": cpu_end - cpu,
            "peak_mib": status_mib("VmHWM"),
            "loaded_mib": self.loaded_mib,
            "cuda_peak_mib": torch.cuda.max_memory_allocated() / MIB if self.cuda else None,
        }


def status_mib(name: str) -> float:
    """A line of /proc/self/status, which counts in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(found[1]) / 1024


def read_order(path: str) -> dict[str, Any]:
    """What a process is told to do."""
    order: dict[str, Any] = json.loads(Path(path).read_text())
    return order


def write_result(order: dict[str, Any], result: dict[str, Any]) -> None:
    """The process's only output that counts; written whole or not at all."""
    target = Path(order["result"])
    scratch = target.with_suffix(".part")
    scratch.write_text(json.dumps(result))
    scratch.replace(target)
