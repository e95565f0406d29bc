"""What one row, file or step costs where no other benchmark says it: measured inputs of `simulate_scale.py`.

    python benchmarks/scale_inputs.py --out benchmarks/results/scale-inputs.json      # a minute on a quiet machine

CPU seconds are those of the process, so they hold on a busy machine too; what waits (the wire) is a wall time and the
smallest of many tries. `workers` trains the same windows on one and on two gloo processes of one thread each.
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
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from training_run import ROOT, Bench, environment

from bco_ray.feedback.blocks import by_bucket
from bco_ray.schema import PARSED, SCORED
from bco_ray.storage.scored import ScoredManifest, ShardFacts
from bco_ray.training.batches import Share, window_batches
from bco_ray.training.plan import POOL_ROWS, Plan, ShardCounts
from bco_ray.training.shard_reader import ShardReader

HERE = Path(__file__).parent
SHARD = "part-00000.parquet"
SHARD_ROWS, ROW_TOKENS, VOCABULARY = 2048, 512, 128_000
WINDOW_ROWS, SHARES, PACK_TOKENS = 1024, 64, 8192
HASHED_BYTES = 64 << 20
VOTE_BYTES, BUCKET_VOTES = 645, 4096
TRAINED_WINDOWS, TRAINED_ROWS = 6, 32

Figures = dict[str, Any]


def cpu_seconds(do: Callable[[], Any]) -> float:
    """The smallest of three tries."""
    tries = []
    for _ in range(3):
        start = time.process_time()
        do()
        tries.append(time.process_time() - start)
    return min(tries)


def planning() -> float:
    """CPU seconds per row for the order of one whole pool."""
    plan = Plan((ShardCounts(3072, 5120),) * (POOL_ROWS // 8192), 128, epochs=1, seed=0)
    return cpu_seconds(lambda: sum(1 for _ in plan.windows())) / plan.rows


def scored_shard(directory: Path) -> ScoredManifest:
    """Rows of ROW_TOKENS tokens whose ids are as uneven as words are."""
    random = np.random.default_rng(0)
    ids = np.minimum(random.zipf(1.2, (SHARD_ROWS, ROW_TOKENS)), VOCABULARY - 1)
    mask = np.arange(ROW_TOKENS) >= ROW_TOKENS // 2
    rows = [
        {"file": "made", "position": i, "entry": 0, "id": str(i), "user": None, "source": None, "split": "train",
         "prompt_hash": i, "label": i % 8 < 3, "weight": 1.0, "n_tokens": ROW_TOKENS, "input_ids": ids[i],
         "completion_mask": mask, "reference_logp": -80.0}
        for i in range(SHARD_ROWS)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), directory / SHARD, compression="zstd")
    ups = SHARD_ROWS * 3 // 8
    facts = ShardFacts(file=SHARD, train_chosen=ups, train_rejected=SHARD_ROWS - ups, validation_chosen=0,
                       validation_rejected=0, train_tokens=SHARD_ROWS * ROW_TOKENS)  # fmt: skip
    return ScoredManifest(inputs={}, read=SHARD_ROWS, kept=SHARD_ROWS, drops={}, matching={}, shards=[facts])


def batching(work: Path) -> Figures:
    """What each worker pays per row of the window, and of the shards, whoever trains on it."""
    manifest = scored_shard(work)
    reader = ShardReader(work, manifest, cached_shards=1)
    window = next(Plan(reader.counts, WINDOW_ROWS, 1, 0).windows())
    decode = cpu_seconds(lambda: ShardReader(work, manifest, cached_shards=1)._shard(0))
    reader._shard(0)
    batch = cpu_seconds(lambda: window_batches(reader, window, Share(0, SHARES, PACK_TOKENS)))
    return {
        "decode_cpu_seconds_per_token": decode / SHARD_ROWS / ROW_TOKENS,
        "batch_cpu_seconds_per_row": batch / WINDOW_ROWS,
        "shard_bytes_per_token": (work / SHARD).stat().st_size / SHARD_ROWS / ROW_TOKENS,
    }


def hashing() -> float:
    """SHA-256 of memory, bytes per CPU second: what a commit does with every file."""
    data = os.urandom(HASHED_BYTES)
    return HASHED_BYTES / cpu_seconds(lambda: sha256(data).digest())


def settling() -> float:
    """Bytes of Python objects per byte of log while a bucket is settled."""
    text = "word " * ((VOTE_BYTES - 200) // 5)
    vote = {"file": "log.jsonl", "entry": 0, "kind": "vote", "bucket": 0, "label": True, "weight": 1.0, "tags": [],
            "siblings": [], "prompt_hash": 1, "user": "0123456789abcdef", "metadata": "{}"}  # fmt: skip
    rows = [
        vote | {"position": i, "id": f"v{i}", "prompt": text[: len(text) // 3], "completion": text[len(text) // 3 :]}
        for i in range(BUCKET_VOTES)
    ]
    table = pa.Table.from_pylist(rows, schema=PARSED)
    tracemalloc.start()
    found = [votes for _, votes in by_bucket(table)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / sum(map(len, found)) / VOTE_BYTES


def training(work: Path, workers: int) -> list[Figures]:
    """What each worker of a gang says of the same windows."""
    bench = Bench(out=work, venvs=work, device="cpu", precision="fp32", threads=1, window_rows=TRAINED_ROWS,
                  median_words=32, micro_batch_tokens=2048)  # fmt: skip
    task = bench.task("small", TRAINED_WINDOWS + 2, None)
    settings = {"variant": {"micro_batch_tokens": 2048}, "task": task, "scratch": str(work / f"scratch-{workers}")}
    order = work / f"order-{workers}.json"
    order.write_text(json.dumps(bench.order(**settings, steps=TRAINED_WINDOWS, result=str(work / f"of-{workers}"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    done = subprocess.run([*command, str(HERE / "scale_worker.py"), str(order)], capture_output=True, text=True,
                          env=environment(1, work) | {"PYTHONPATH": f"{ROOT}:{HERE}"})  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = [json.loads((work / f"of-{workers}-{rank}").read_text()) for rank in range(workers)]
    return [one | {"window_tokens": task["tokens"], "window_flops": task["flops"]} for one in found]


def gangs(work: Path) -> Figures:
    """One worker beside two; medians over the steps after the first."""
    by_size = {workers: training(work, workers) for workers in (1, 2)}
    solo = by_size[1][0]
    busiest = [max(step) for step in zip(*(one["cpu_seconds"] for one in by_size[2]), strict=True)]
    return {
        "model": "small", "window_rows": TRAINED_ROWS, "window_tokens": solo["window_tokens"],
        "window_flops": solo["window_flops"], "parameters": solo["parameters"],
        "metrics_row_bytes": solo["metrics_row_bytes"],
        "1": {"cpu_seconds_per_step": median(solo["cpu_seconds"][1:]), "steps": solo["cpu_seconds"]},
        "2": {"cpu_seconds_per_step": median(busiest[1:]), "steps": busiest},
        "gloo_seconds_by_bytes": by_size[2][0]["gloo_seconds_by_bytes"],
    }  # fmt: skip


def main() -> None:
    """Measure all and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bco-inputs-") as work:
        found = {
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "plan_cpu_seconds_per_row": planning(),
            **batching(Path(work)),
            "sha256_bytes_per_cpu_second": hashing(),
            "settling_bytes_per_log_byte": settling(),
            "gangs": gangs(Path(work)),
        }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
