"""Does a log's size show in memory, or in rows per second? 10k, 100k and 1M votes through check, import and the fit.

    python benchmarks/data_scale.py                      # ours; --sizes 10000 100000 to be quicker, --json FILE
    pip install -c constraints.txt -r benchmarks/requirements.txt && python benchmarks/data_scale.py --trl

Every figure is from one process tree of its own: peak memory is read every 0.2 s from /proc for each process, RSS
without the pages it shares with others through Ray's object store (those are counted once, as `store`). `--trl`
prepares the same log with TRL 1.13.0's BCOTrainer (read, unpair, template, tokenize) at the sizes it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

MIB = 1 << 20
SAMPLE_SECONDS = 0.2
console = Console(stderr=True, width=160)


@dataclass
class Figure:
    """One command on one size. Memory in MiB: the largest single process, and which it was."""

    what: str
    rows: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    process: str
    peak_by_process: dict[str, float]

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


class Watch:
    """Peak private memory and CPU seconds of a process and all its descendants, until it ends."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.peak: dict[str, float] = {}
        self.cpu: dict[int, float] = {}
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            for process in [self.root, *self.root.children(recursive=True)]:
                self._sample(process)
            time.sleep(SAMPLE_SECONDS)

    def _sample(self, process: psutil.Process) -> None:
        try:
            memory, times = process.memory_info(), process.cpu_times()
            name = kind_of(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return
        self.peak[name] = max(self.peak.get(name, 0.0), (memory.rss - memory.shared) / MIB)
        self.cpu[process.pid] = times.user + times.system


KINDS = {"ray::": "worker", "default_worker": "worker", "raylet/raylet": "raylet", "gcs_server": "gcs"}


def kind_of(process: psutil.Process) -> str:
    """`worker`, `driver`, `raylet`, ...: processes of one kind do the same work."""
    command = " ".join(process.cmdline()) or process.name()
    found = next((kind for word, kind in KINDS.items() if word in command), None)
    return found or ("ray" if "/ray/" in command else "driver")


def measure(what: str, rows: int, command: list[str]) -> Figure:
    """Run a command and watch it. Raises if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment())
        watch = Watch(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - start
        errors.seek(0)
        if code:
            raise RuntimeError(f"{' '.join(command)} exited with {code}:\n{errors.read().decode()[-3000:]}")
    watch.thread.join(timeout=5)
    heaviest = max(watch.peak, key=lambda name: watch.peak[name])
    return Figure(what, rows, seconds, sum(watch.cpu.values()), watch.peak[heaviest], heaviest, watch.peak)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def write_log(path: Path, rows: int) -> None:
    """Votes of a few hundred bytes each on answers of a product: some copies, some changes of mind, some dirt."""
    chance = random.Random(0)
    words = [f"word{n}" for n in range(2000)]
    with path.open("w") as file:
        for n in range(rows):
            if n % 1000 == 999:
                file.write('{"prompt": "torn\n')
                continue
            answer = chance.randrange(rows) if n % 10 == 0 else n
            text = random.Random(answer)
            vote = {
                "prompt": " ".join(text.choices(words, k=20)), "completion": " ".join(text.choices(words, k=40)),
                "response_id": f"r{answer}", "user": f"user{chance.randrange(max(10, rows // 50))}",
                "label": chance.random() < 0.4, "model": "bot/1", "updated_at": 1.7e9 + n,
            }  # fmt: skip
            file.write(json.dumps(vote) + "\n")


def write_prompts(directory: Path, rows: int, width: int = 256) -> list[Path]:
    """Prompt files as the reference pass leaves them."""
    import pyarrow as pa

    from bco_ray.schema import PROMPTS
    from bco_ray.scoring.matching_prompts import embedding_column
    from bco_ray.scoring.shards import write_table

    directory.mkdir()
    chance = np.random.default_rng(0)
    paths = []
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        up_N = chance.random(count) < 0.4
        embedding_ND = chance.standard_normal((count, width)).astype(np.float32)
        embedding_ND[up_N, 0] += 1.0
        hashes = np.sort(chance.integers(-(2**63), 2**63 - 1, count))
        table = pa.table(
            [hashes, ["train"] * count, up_N.astype(np.int32), (~up_N).astype(np.int32),
             embedding_column(embedding_ND)],
            schema=PROMPTS,
        )  # fmt: skip
        paths.append(directory / f"prompts-{start:09d}.parquet")
        write_table(paths[-1], table)
    return paths


FIT = """
import sys
from pathlib import Path
from bco_ray.scoring.matching import fit_matching
_, report = fit_matching(sorted(Path(sys.argv[1]).glob("*.parquet")), mode="auto", target="positive",
                         min_density_ratio=0.5, max_density_ratio=10.0)
assert report.applied, report.reason
"""


def ours(work: Path, rows: int) -> list[Figure]:
    """check, import and the classifier's fit."""
    log, bco = work / "log.jsonl", str(Path(sys.executable).parent / "bco")
    write_log(log, rows)
    write_prompts(work / "prompts", rows)
    imported = ["--out", str(work / "out"), "--storage", str(work / "runs")]
    return [
        measure("check", rows, [bco, "data", "check", str(log), "--json"]),
        measure("import", rows, [bco, "data", "import", str(log), *imported]),
        measure("fit", rows, [sys.executable, "-c", FIT, str(work / "prompts")]),
    ]


PEERS = {"ours, up to tokens": "prepare_ours.py", "TRL 1.13.0, up to tokens": "prepare_trl.py"}
TINY = "import sys, pathlib, bco_ray.testing.tiny as tiny; tiny.write_tiny_model(pathlib.Path(sys.argv[1]))"


def trl(work: Path, rows: int) -> list[Figure]:
    """TRL's own preparation of the same log, and ours up to tokens, for the same tiny model."""
    log, model, here = work / "log.jsonl", work / "model", Path(__file__).parent
    write_log(log, rows)
    subprocess.run([sys.executable, "-c", TINY, str(model)], check=True, env=environment(), capture_output=True)
    return [
        measure(what, rows, [sys.executable, str(here / script), str(log), str(model), str(work / script)])
        for what, script in {
            "ours, up to tokens": "prepare_ours.py",
            "TRL 1.13.0, up to tokens": "prepare_trl.py",
        }.items()
    ]


def show(figures: list[Figure]) -> None:
    table = Table("what", "rows", "seconds", "rows/s", "CPU-s per 10k", "peak MiB", "in", "kinds (MiB)")
    for f in figures:
        kinds = " ".join(f"{kind} {mib:.0f}" for kind, mib in sorted(f.peak_by_process.items()))
        table.add_row(f.what, f"{f.rows:,}", f"{f.seconds:.1f}", f"{f.rows_per_second:,.0f}",
                      f"{1e4 * f.cpu_seconds / f.rows:.1f}", f"{f.peak_mib:.0f}", f.process, kinds)  # fmt: skip
    console.print(table)


def ratios(figures: list[Figure]) -> None:
    """The largest size against the one before it."""
    for what in dict.fromkeys(figure.what for figure in figures):
        sizes = [figure for figure in figures if figure.what == what]
        if len(sizes) > 1:
            small, large = sizes[-2:]
            memory, speed = large.peak_mib / small.peak_mib, large.rows_per_second / small.rows_per_second
            console.print(
                f"{what}: {large.rows:,} against {small.rows:,}: peak memory x{memory:.2f}, rows/s x{speed:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--trl", action="store_true", help="side by side with TRL's preparation instead")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    sizes = options.sizes or ([10_000, 50_000] if options.trl else [10_000, 100_000, 1_000_000])
    figures: list[Figure] = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="bco-scale-") as work:
            figures += (trl if options.trl else ours)(Path(work), rows)
        show(figures)
    ratios(figures)
    if options.json:
        machine: dict[str, Any] = {"cpus": os.cpu_count(), "python": sys.version.split()[0]}
        options.json.write_text(json.dumps({"machine": machine, "figures": [asdict(f) for f in figures]}, indent=1))


if __name__ == "__main__":
    main()
