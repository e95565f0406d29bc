"""What the fit of the density ratio costs, and how exact it is: ours over shards against scikit-learn in memory.

    python benchmarks/density_fit.py                      # 500,000 prompts x 384; --rows, --width, --json FILE

Every figure is from a process of its own. Ours reads Parquet shards once per pass, which is included; scikit-learn gets
one array of features (float32, exact: float64), loading not included. `memory` is what the peak RSS grew by over the
imports and a first look at a Parquet file; for scikit-learn it includes that array. Exact is its newton-cholesky in
float64 at tol 1e-12.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bco_ray.schema import PROMPTS
from bco_ray.scoring.matching_fit import choose_strength, draw_sample, fit_folds, survey_shards
from bco_ray.scoring.matching_passes import in_process
from bco_ray.scoring.matching_prompts import Features, embedding_column, train_prompts
from bco_ray.scoring.shards import write_table

C = 1.0
SHARD_ROWS = 8192
MIB = 1 << 20
NAMES = {
    "single": "ours, one model",
    "folds": "ours, 5 fold models",
    "auto": "ours, 5 fold models, C chosen",
    "sklearn": "scikit-learn, defaults",
    "exact": "scikit-learn, exact",
}
console = Console(stderr=True)


def write_shards(directory: Path, rows: int, width: int) -> None:
    """Prompts with a constant part, a few strong directions and a shift between ups and downs along all of them."""
    random = np.random.default_rng(0)
    scale_D = (1 + np.arange(width)) ** -0.5
    constant_D, shift_D = random.normal(size=width), 0.05 * scale_D * random.normal(size=width)
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - first)
        up_N = random.random(count) < 0.35
        embedding_ND = constant_D + scale_D * random.standard_normal((count, width)) + up_N[:, None] * shift_D
        columns = {
            "prompt_hash": random.integers(-(2**63), 2**63, count),
            "split": pa.array(["train"] * count),
            "chosen": up_N.astype(np.int32),
            "rejected": (~up_N).astype(np.int32),
            "embedding": embedding_column(embedding_ND),
        }
        write_table(directory / f"prompts-{first:09d}.parquet", pa.table(columns, schema=PROMPTS))


def ours(directory: Path, *, whole: bool, choose: bool = False) -> tuple[Callable[[], np.ndarray], dict[str, Any]]:
    shards, said = sorted(directory.glob("*.parquet")), {}

    def run() -> np.ndarray:
        survey = survey_shards(shards, in_process)
        sample = draw_sample(shards, survey, in_process)
        strength = choose_strength(sample) if choose else C
        found = fit_folds(shards, survey, sample, each=in_process, strength=strength, whole=whole)
        said.update(passes=found.minimum.passes, converged=found.minimum.converged, strength=strength)
        return found.minimum.point_EK

    return run, said


def scikit_learn(directory: Path, *, exact: bool) -> tuple[Callable[[], np.ndarray], dict[str, Any]]:
    from sklearn.linear_model import LogisticRegression

    kept, X_ND, y_N = load(directory, np.float64 if exact else np.float32)
    how: dict[str, Any] = {"tol": 1e-12, "max_iter": 1000, "solver": "newton-cholesky"} if exact else {"max_iter": 1000}

    def run() -> np.ndarray:
        model = LogisticRegression(C=C, class_weight="balanced", **how).fit(X_ND, y_N)
        return np.append(model.coef_[0], model.intercept_)[:, None]

    return run, kept


def load(directory: Path, dtype: type[np.floating[Any]]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """All features about the same mean as ours, in one array."""
    shards = sorted(directory.glob("*.parquet"))
    mean_D = draw_sample(shards, survey_shards(shards, in_process), in_process).mean_D
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in shards)
    X_ND, y_N, end = np.empty((rows, len(mean_D)), dtype=dtype), np.empty(rows, dtype=bool), 0
    for block in (block for path in shards for block in train_prompts(path)):
        X_ND[end : end + len(block)] = Features.of(block.embedding_ND, mean_D).matrix()[:, :-1]
        y_N[end : end + len(block)] = block.count_N2[:, 1] > 0
        end += len(block)
    return {}, X_ND, y_N


def measure(what: str, directory: Path, out: Path) -> None:
    """In a process of its own: run one of NAMES, save its coefficients and what it took."""
    process = psutil.Process()
    next(train_prompts(min(directory.glob("*.parquet")), embedded=False))  # loads pyarrow's Parquet code, some 40 MiB
    floor = process.memory_info().rss
    run, said = {
        "single": lambda: ours(directory, whole=True),
        "folds": lambda: ours(directory, whole=False),
        "auto": lambda: ours(directory, whole=False, choose=True),
        "sklearn": lambda: scikit_learn(directory, exact=False),
        "exact": lambda: scikit_learn(directory, exact=True),
    }[what]()
    peak, over = [floor], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    point_EK = run()
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    over.set()
    thread.join()
    np.save(out.with_suffix(".npy"), point_EK)
    out.write_text(json.dumps({"what": what, **took, "memory_mib": (peak[0] - floor) / MIB, **said}))


def differences(directory: Path, ours_E: np.ndarray, other_E: np.ndarray) -> dict[str, float]:
    """Largest difference of a coefficient, and of a ratio of the first shards, bare."""
    shards = sorted(directory.glob("*.parquet"))
    mean_D = draw_sample(shards, survey_shards(shards, in_process), in_process).mean_D
    ratio = 0.0
    for block in (block for path in shards[:10] for block in train_prompts(path)):
        X_NE = Features.of(block.embedding_ND, mean_D).matrix()
        ratio = max(ratio, float(np.abs(np.exp(X_NE @ ours_E) - np.exp(X_NE @ other_E)).max()))
    return {"coefficient_difference": float(np.abs(ours_E - other_E).max()), "ratio_difference": ratio}


def compare(directory: Path, results: dict[str, dict[str, Any]], work: Path) -> None:
    """Against the exact optimum, where it was computed."""
    if "exact" not in results:
        return
    exact_E = np.load(work / "exact.npy")[:, 0]
    for what in ("single", "sklearn"):
        if what in results:
            results[what] |= differences(directory, np.load(work / f"{what}.npy")[:, 0], exact_E)


def show(results: dict[str, dict[str, Any]], title: str) -> None:
    columns = ("cpu_seconds", "seconds", "memory_mib", "passes", "coefficient_difference", "ratio_difference")
    table = Table("fit", *columns, title=title)
    for what, result in results.items():
        cells = (result.get(column) for column in columns)
        table.add_row(NAMES[what], *("" if cell is None else f"{cell:.3g}" for cell in cells))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--fits", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--threads", type=int, default=1, help="of the linear algebra library")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], Path(asked.measure[1]), Path(asked.measure[2]))
        return
    results: dict[str, dict[str, Any]] = {}
    threads = {name: str(asked.threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as temporary:
        directory, work = Path(temporary) / "shards", Path(temporary)
        directory.mkdir()
        write_shards(directory, asked.rows, asked.width)
        for what in asked.fits:
            out = work / f"{what}.json"
            command = [sys.executable, __file__, "--measure", what, str(directory), str(out)]
            subprocess.run(command, check=True, env=os.environ | threads)
            results[what] = json.loads(out.read_text())
        compare(directory, results, work)
    show(results, f"{asked.rows:,} prompts x {asked.width}, {asked.threads} thread(s)")
    if asked.json:
        asked.json.write_text(json.dumps({"rows": asked.rows, "width": asked.width, "fits": results}, indent=1))


if __name__ == "__main__":
    main()
