"""Our training step beside TRL's trainers, and our loop under Ray beside a bare DeepSpeed script.

    python benchmarks/training.py --peer trl --out DIR              # three model sizes, three rounds: hours on a CPU
    python benchmarks/training.py --peer trl --out DIR --quick      # two minutes: does everything still work?
    python benchmarks/training.py --peer deepspeed --out DIR
    python benchmarks/training.py --peer trl --out DIR --device cuda --model MODEL_DIRECTORY

The sides take turns (A B A B); each measurement is a process of its own and counts the steps after its first. Before
any ratio is printed both sides must have seen the same tokens, given them the same log-probabilities and had the loss
of zero rewards. What DIR holds already is not measured again, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from training_overhead import overhead
from training_report import Check, check_ours, check_trl, compared, figures, medians, ratios, reached
from training_run import ROOT, VARIANTS, Bench, write_json

console = Console(stderr=True, width=160)
STEPS = {"small": 4, "25m": 3, "90m": 2}
PEERS = ("bco-default", "bco-tuned", "kto-default", "kto-tuned")
QUICK = {"sizes": "small", "rounds": 1, "steps": 2, "window_rows": 32, "median_words": 24}


def arguments() -> argparse.Namespace:
    """The command line; `--quick` fills in what was not said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl", "deepspeed"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="models, votes and measurements; kept")
    parser.add_argument("--venvs", type=Path, help="TRL's environments, made if missing; default OUT/venvs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="not used by --quick")
    parser.add_argument("--sizes", default="small,25m,90m")
    parser.add_argument("--model", type=Path, help="a real model's directory instead of made ones")
    parser.add_argument("--variants", default=",".join(PEERS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"with the first; default {STEPS}, 4 for --model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default bf16 on cuda, fp32 on cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window-rows", type=int, default=128)
    parser.add_argument("--median-words", type=int, default=32, help="of a vote; some two thirds are its answer")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="ours")
    parser.add_argument("--zero-stage", type=int, default=1, help="for --peer deepspeed")
    parser.add_argument("--quick", action="store_true")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def bench(options: argparse.Namespace) -> Bench:
    """The settings all processes share."""
    out = options.out.resolve()
    return Bench(
        out=out,
        venvs=(options.venvs or out / "venvs").resolve(),
        device=options.device,
        precision=options.precision or ("bf16" if options.device == "cuda" else "fp32"),
        threads=options.threads,
        window_rows=options.window_rows,
        median_words=options.median_words,
        micro_batch_tokens=options.micro_batch_tokens,
        zero_stage=options.zero_stage if options.peer == "deepspeed" else 0,
    )


def compare_with_trl(run: Bench, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size: ours, then each peer, again and again."""
    steps = options.steps or STEPS.get(size, 4)
    task = run.task(size, steps + 1, options.model and options.model.resolve())  # ours never ends a run, see there
    names = ["ours", *options.variants.split(",")]
    sides: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    checks: dict[str, Check] = {}
    raw: list[dict[str, Any]] = []
    for round_number in range(options.rounds):
        matmul = run.matmul(round_number)
        for name in names:
            console.print(f"{size}, round {round_number + 1} of {options.rounds}: {name}")
            found = run.measure(name, task, steps, round_number)
            checks[name] = check(name, found, task, run.precision)
            sides[name].append(figures(found, task, matmul, run.precision, run.device))
            raw.append({"side": name, "round": round_number, "matmul": matmul, **without_rows(found)})
    title = f"{size}, {run.precision}, {run.device}, threads: {run.threads}"
    console.print(reached(title, sides, checks), compared(title, sides, checks))
    return {
        "size": size, "tokens": task["tokens"], "flops": task["flops"],
        "medians": {name: medians(rounds) for name, rounds in sides.items()},
        "ours_by": {name: ratios(sides["ours"], rounds) for name, rounds in sides.items() if same(checks, name)},
        "checks": {name: asdict(found) for name, found in checks.items()}, "rounds": raw,
    }  # fmt: skip


def check(name: str, found: dict[str, Any], task: dict[str, Any], precision: str) -> Check:
    """By what each side can show."""
    if name == "ours":
        return check_ours(found, task, precision)
    return check_trl(found, task, precision, VARIANTS[name].loss)


def same(checks: dict[str, Check], name: str) -> bool:
    """Whether a ratio means anything."""
    return name != "ours" and not checks["ours"].problems and not checks[name].problems


def without_rows(found: dict[str, Any]) -> dict[str, Any]:
    """A measurement less its long lists, which were for the check."""
    return {name: value for name, value in found.items() if name not in ("first_logps", "first_rows")}


def hardware(device: str) -> dict[str, Any]:
    """The machine, in its own words."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    flags = re.findall(r"\b(avx2|avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count(), "features": sorted(set(flags)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None, "gpu": gpu,
        "python": platform.python_version(), "kernel": platform.release(),
    }  # fmt: skip


def write_results(options: argparse.Namespace, run: Bench, found: list[dict[str, Any]]) -> None:
    """One file per run, without the paths of this machine."""
    now = datetime.datetime.now(datetime.UTC)
    kept = {k: v for k, v in vars(options).items() if k not in ("out", "venvs", "results", "model")}
    command = kept | {"precision": run.precision, "model": options.model and options.model.name}
    report = {"at": now.isoformat(timespec="seconds"), "command": command, "hardware": hardware(run.device)}
    directory = options.out if options.quick else options.results
    name = f"training-{options.peer}-{run.device}-{run.precision}-{now:%Y%m%d-%H%M}.json"
    path = write_json(directory / name, report | {"found": found})
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
    console.print(f"written: {path}")


def main() -> None:
    """One peer, size by size."""
    options = arguments()
    run = bench(options)
    sizes = [options.model.resolve().name] if options.model else options.sizes.split(",")
    compare = compare_with_trl if options.peer == "trl" else overhead
    write_results(options, run, [compare(run, size, options) for size in sizes])


if __name__ == "__main__":
    main()
