"""Does every unpaired loss learn? The demo's world, first round, one training per loss and seed, one table.

    python benchmarks/losses.py --seeds 0 1 2 --out /tmp/losses

Each seed has its own base model and votes; all losses of a seed train on the same scored rows, with the same settings,
and are judged by the hidden rule without noise on the same held-out prompts. Results go to
`benchmarks/results/losses.json` (`--results`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from bco_ray.config.environment import prepare_environment

LOSSES = ("bco", "bce", "kto", "apo_zero_unpaired", "sft")


def main() -> None:
    arguments = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_environment()
    from bco_ray.pipeline.cluster import cluster
    from bco_ray.telemetry import configure_logging

    configure_logging()
    found: dict[str, Any] = {}
    with cluster(workers=2, object_store_bytes=500_000_000):
        for seed in arguments.seeds:
            found[str(seed)] = one_seed(arguments.out / f"seed-{seed}", seed, arguments.losses)
            _write(arguments.results, found)
    _print(found)


def one_seed(out: Path, seed: int, losses: list[str]) -> dict[str, Any]:
    """By `base` and by loss: thumbs-up rate on held-out prompts and its 95 % interval."""
    from bco_ray.demo.base import WORLD, train_base
    from bco_ray.demo.loop import VOTES
    from bco_ray.demo.votes import judge_model, sample_votes, write_log

    if not (out / "votes.jsonl").exists():
        train_base(out / "base", seed=seed)
        write_log(out / "votes.jsonl", sample_votes(out / "base", rows=VOTES, seed=seed), seed=seed)
    found: dict[str, Any] = {}
    for name in ("base", *losses):
        model = out / "base" if name == "base" else train(out, seed, name)
        judged = judge_model(model, WORLD.held_out_prompts, seed=seed)
        found[name] = {"rate": round(judged.thumbs_up_rate, 4), "interval": [round(x, 4) for x in judged.interval]}
        print(f"seed {seed} {name:18} {judged.thumbs_up_rate:.1%}", flush=True)  # noqa: T201
    return found


def train(out: Path, seed: int, loss: str) -> Path:
    """The model trained with `loss`, in this process; scoring runs on the cluster, once for all losses."""
    import torch

    from bco_ray.config import parse_spec
    from bco_ray.demo.loop import TRAINING
    from bco_ray.pipeline.resolve import resolve
    from bco_ray.pipeline.run import score_job, train_setup
    from bco_ray.telemetry import Phases
    from bco_ray.training.gang import SoloGang
    from bco_ray.training.loop import train as train_here

    torch.set_num_threads(1)
    spec = {
        "name": loss,
        "model": {"base": str(out / "base")},
        "data": {"feedback": [str(out / "votes.jsonl")]},
        "objective": {"loss": loss},
        "training": {**TRAINING, "seed": seed, "deepspeed": {"zero_stage": 0}, "num_workers": 1},
        "output": {"storage": str(out / "runs")},
    }
    job = resolve(parse_spec(spec, where="benchmarks/losses.py"))
    score_job(job, Phases(quiet=True))
    job.run_directory.mkdir(parents=True, exist_ok=True)
    train_here(train_setup(job), SoloGang())
    return job.run_directory / "model"


def _write(path: Path, found: dict[str, Any]) -> None:
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "seeds": found}, indent=1) + "\n")


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("loss", *(f"seed {seed}" for seed in found), "mean", "gain over base")
    names = list(next(iter(found.values())))
    base = _mean(found, "base")
    for name in names:
        rates = [f"{rows[name]['rate']:.1%}" for rows in found.values()]
        table.add_row(name, *rates, f"{_mean(found, name):.1%}", f"{100 * (_mean(found, name) - base):+.1f} points")
    Console().print(table)


def _mean(found: dict[str, Any], name: str) -> float:
    return sum(float(rows[name]["rate"]) for rows in found.values()) / len(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--out", type=Path, required=True, help="working directory; what is there is used again")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "losses.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
