"""The fault tests with many more kills, and what they counted: `python benchmarks/soak.py [--points 40] [--seed 1]`.

Writes benchmarks/results/soak.json: per kind of test how many processes were killed where, and what was lost. Takes
most of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "soak.json"


def main() -> int:
    """The tests' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=40, help="kills per test that samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bco-soak-") as scratch:
        report = Path(scratch) / "report.jsonl"
        environment = {"BCO_FAULT_POINTS": str(options.points), "BCO_FAULT_SEED": str(options.seed)}
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-m", "", "tests/faults", *more]
        status = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment, "BCO_FAULT_REPORT": str(report)}, check=False
        ).returncode
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    result = {
        "command": f"python benchmarks/soak.py --points {options.points} --seed {options.seed}",
        "passed": status == 0,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "total_kills": sum(sum(n for what, n in line["counts"].items() if what in KILLS) for line in lines),
        "counts": summed(lines),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))  # noqa: T201
    return status


KILLS = ("kills", "killed")
"""Counts of processes that were killed."""


def summed(lines: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By what was tested."""
    found: dict[str, Counter[str]] = {}
    for line in lines:
        found.setdefault(line["name"], Counter()).update(line["counts"])
    return {name: dict(counts) for name, counts in found.items()}


def git(*words: str) -> str:
    """What git says."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
