"""A loop that closes: users, a served model, thumbs, and round after round a version that has to pass its gate.

    python benchmarks/closed_loop.py --rates --out DIR                 # picks each arm's learning rate (some minutes)
    python benchmarks/closed_loop.py --seeds 0 1 2 --out DIR           # goes on where it was; see --alone

Each arm and seed: the demo's base model is registered and served by `name@prod`; `--users` people ask it over HTTP and
some vote (`closed_loop_users.py`); a round trains on what the live version has not learned from, evaluates, registers,
and promotes through the gate. The server stays up. What the gate refuses is not served; the next round starts from what
is, and takes those votes once more.
Satisfaction is the share of all answers, voted on or not, that the hidden rule likes: no noise, no selection.
Results go to `benchmarks/results/closed_loop.json` after every round, and a picture beside it at the end of every arm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from closed_loop_report import Row, differences, draw, summary, table
from closed_loop_rounds import ARMS, GATE, Arm, rounds

from bco_ray.config.environment import prepare_environment

HERE = Path(__file__).parent


def main() -> None:
    options = arguments()
    if options.draw:
        show(options.results)
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    """Rates, or all arms of all seeds, on a cluster of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_environment()
    import torch

    from bco_ray.pipeline.cluster import cluster
    from bco_ray.telemetry import configure_logging

    torch.set_num_threads(1)
    configure_logging()
    with cluster(workers=4, object_store_bytes=500_000_000):
        if options.rates:
            pick_rates(options)
            return
        for seed in options.seeds:
            for name in options.arms:
                one_arm(ARMS[name], seed, options)


def pick_rates(options: argparse.Namespace) -> None:
    """The best one of each arm that trains."""
    from closed_loop_rates import try_rates

    arms = [ARMS[name] for name in options.arms if ARMS[name].loss]
    tried = try_rates(arms, out=options.out, people=options.users)
    found = read(options.results)
    found["rates_tried"] = {**found.get("rates_tried", {}), **tried}
    chosen = {arm: float(max(of_rate, key=of_rate.__getitem__)) for arm, of_rate in tried.items()}
    found["learning_rates"] = {**found.get("learning_rates", {}), **chosen}
    write(options.results, found)


def one_arm(arm: Arm, seed: int, options: argparse.Namespace) -> None:
    """All rounds, written as they come; those that are there already are not done again."""
    found = read(options.results)
    known = [row for row in found["rounds"] if (row["arm"], row["seed"]) == (arm.name, seed)]
    if len(known) > options.rounds:
        return
    found |= {"machine": machine(), "users": options.users, "alone": options.alone, "gate": GATE}
    rates = found.get("learning_rates", {})
    rate = rates.get(arm.name) or rates.get(arm.loss, 0.0)
    how = {"count": options.rounds, "people": options.users, "out": options.out, "alone": options.alone}
    for row in rounds(arm, known, seed=seed, rate=rate, **how):
        found["rounds"] = [old for old in found["rounds"] if not same(old, row)] + [row]
        write(options.results, found)
        print(json.dumps(row), flush=True)  # noqa: T201
    show(options.results)


def show(results: Path) -> None:
    """The table, and the picture beside the results."""
    found = read(results)
    print(table(found["summary"]), flush=True)  # noqa: T201
    draw(found["rounds"], found["summary"], results.with_suffix(".png"))


def same(one: Row, other: Row) -> bool:
    """Whether both are of one round, or `one` is a later one of an arm that has begun anew."""
    mine = (one["arm"], one["seed"]) == (other["arm"], other["seed"])
    return mine and one["round"] >= other["round"]


def read(path: Path) -> dict[str, Any]:
    """What was found so far."""
    return dict(json.loads(path.read_text())) if path.is_file() else {"rounds": []}


def write(path: Path, found: dict[str, Any]) -> None:
    """With everything that follows from the rounds."""
    rows: Sequence[Row] = found["rounds"]
    found["summary"] = summary(rows)
    found["differences"] = {
        f"{one} less {other}": differences(rows, one, other)
        for one, other in (
            ("bco", "none"),
            ("kto", "none"),
            ("bco", "kto"),
            ("bco", "bco, not matched"),
            ("bco", "bco, moved reference"),
            ("bco", "bco, all votes"),
        )
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["none", "bco", "kto"], choices=list(ARMS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--rates", action="store_true", help="pick learning rates, and nothing else")
    parser.add_argument("--draw", action="store_true", help="draw what there is, and nothing else")
    parser.add_argument("--alone", action="store_true", help="train and score in one process (closed_loop_alone.py)")
    parser.add_argument("--out", type=Path, default=Path("closed-loop"), help="working directory")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "closed_loop.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
