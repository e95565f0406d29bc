"""What a run is made of, in numbers: measured here, read in the code, or assumed of hardware that was not here.

A measured cost names where it stands; an assumed one is a parameter of `simulate_scale.py` with a default and a source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GB = 1e9


@dataclass(frozen=True)
class Measured:
    """One figure of this repository's own runs, all on two cores of an AMD EPYC without a GPU."""

    value: float
    unit: str
    where: str


def _found(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


@cache
def measured() -> dict[str, Measured]:
    """By name. What a results file holds is read from it, what a table of README.md holds stands here."""
    inputs, votes = _found("scale-inputs.json"), _found("serving-votes.json")["medians"]["ours"]
    here, readme = "results/scale-inputs.json", "benchmarks/README.md, "
    return {
        "settle": Measured(
            4.1e-4 / 645, "CPU-s per byte of log", readme + "data path: a further 10,000 votes of 645 B"
        ),
        "tokenize": Measured((22 - 4.1) * 1e-4 / 645, "CPU-s per byte of log", readme + "up to tokens, less reading"),
        "fit": Measured(31.1e-6, "CPU-s per prompt", readme + "fit, 256 wide, 1,000,000 rows, all passes"),
        "fit_passes": Measured(8, "passes over the prompts", readme + "density-ratio fit"),
        "start_data": Measured(20, "s", readme + "data path: starting Ray and its workers"),
        "restart": Measured(17, "s", "design notes on DeepSpeed and Ray: kill of one of two workers to training again"),
        "votes": Measured(votes["votes_per_second"], "votes/s", "results/serving-votes.json"),
        "plan": Measured(inputs["plan_cpu_seconds_per_row"], "CPU-s per row", here),
        "batch": Measured(inputs["batch_cpu_seconds_per_row"], "CPU-s per row of a window", here),
        "decode": Measured(inputs["decode_cpu_seconds_per_token"], "CPU-s per token", here),
        "shard_bytes": Measured(inputs["shard_bytes_per_token"], "bytes on disk per token", here),
        "sha256": Measured(inputs["sha256_bytes_per_cpu_second"], "bytes/s", here),
        "settling_memory": Measured(inputs["settling_bytes_per_log_byte"], "bytes in memory per byte of log", here),
        "metrics_row": Measured(inputs["gangs"]["metrics_row_bytes"], "bytes per step", here),
    }


def cost(name: str) -> float:
    """The value of a measured cost."""
    return measured()[name].value


def _assumed(default: float, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Hardware:
    """What was not here. Every field is an option of the command line."""

    gpu_flops: float = _assumed(989e12, "FLOP/s", "NVIDIA H100 SXM data sheet, bfloat16, dense")
    mfu: float = _assumed(
        0.40, "of gpu-flops", "public H100 trainings of 7B to 70B: 0.35 to 0.46; recomputation counts 0"
    )
    gpu_memory_gb: float = _assumed(80, "GB", "NVIDIA H100 SXM data sheet")
    gpus_per_node: float = _assumed(8, "GPUs", "NVIDIA DGX H100")
    cores_per_node: float = _assumed(96, "cores for data", "NVIDIA DGX H100 has 112; the rest is left to the trainers")
    nvlink_gb: float = _assumed(360, "GB/s per GPU, one way", "450 on the data sheet, 0.8 of it taken")
    network_gb: float = _assumed(40, "GB/s per GPU, one way", "DGX H100: one 400 Gb/s card per GPU, 0.8 of it taken")
    network_latency: float = _assumed(1e-5, "s per hop", "a guess for InfiniBand with NCCL")
    overlap: float = _assumed(0.0, "of ZeRO 2's and 3's traffic", "overlap_comm is false in our DeepSpeed settings")
    jitter: float = _assumed(0.03, "sigma of log-normal", "a guess: one worker's micro-batch from one time to the next")
    slow_share: float = _assumed(0.005, "of workers", "a guess: GPUs that throttle")
    slow_factor: float = _assumed(1.2, "times longer", "a guess")
    node_mtbf_hours: float = _assumed(6335, "hours", "Llama 3 (2407.21783, 3.3.4): 419 failures, 16,384 GPUs, 54 days")
    spot_hours: float = _assumed(float("inf"), "hours between notices per node", "none: machines on demand")
    detect_seconds: float = _assumed(30, "s", "a guess; a worker that hangs costs training.hang_seconds, 1,800")
    start_per_worker: float = _assumed(0.05, "s", "a guess: Ray starting more workers than the two measured")
    host_copy_gb: float = _assumed(8, "GB/s per GPU", "a guess: to memory that is not pinned")
    node_storage_gb: float = _assumed(1.8, "GB/s per node", "20 connections of 85 to 90 MB/s: Amazon S3 user guide")
    storage_gb: float = _assumed(100, "GB/s for all", "a guess: a parallel file system or object store of some size")
    stream_gb: float = _assumed(1.0, "GB/s of one reader", "a guess: one process reading one file after another")
    file_seconds: float = _assumed(0.005, "s per file", "a guess: open and sync on a network file system")
    task_seconds: float = _assumed(0.001, "s per Ray task", "a guess: one process that hands out tasks")
    price: float = _assumed(3.0, "per GPU-hour", "a guess; ask your provider")


@dataclass(frozen=True)
class Model:
    """A decoder; `parameters` with embeddings."""

    name: str
    parameters: float
    layers: int
    hidden: int
    vocabulary: int = 128_256


MODELS = (
    Model("1B", 1.236e9, 16, 2048),
    Model("8B", 8.03e9, 32, 4096),
    Model("70B", 70.6e9, 80, 8192),
)
"""Llama 3.2 1B, 3.1 8B and 3.1 70B, whole, in bfloat16 with float32 masters."""


@dataclass(frozen=True)
class Job:
    """How votes are and how they are trained on. Lengths are log-normal, cut at `max_tokens`."""

    rows_per_step: int = 2048
    epochs: int = 1
    mean_tokens: float = 512
    max_tokens: int = 2048
    length_spread: float = 0.8
    bytes_per_token: float = 4.5
    overhead_bytes: float = 200
    pack_tokens: int = 8192
    checkpoint_every: int = 50

    @property
    def vote_bytes(self) -> float:
        """Of the log, as JSON."""
        return self.mean_tokens * self.bytes_per_token + self.overhead_bytes


def assumptions() -> list[tuple[str, str, str]]:
    """(name, unit, source) of everything assumed."""
    return [(f.name, f.metadata["unit"], f.metadata["source"]) for f in fields(Hardware)]
