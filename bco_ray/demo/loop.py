"""`bco demo`: the whole loop on this machine, told in order.

base model -> votes on its answers -> round 1 -> serve it -> votes over HTTP -> round 2 on the server's own log.
"""

from __future__ import annotations

import shutil
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bco_ray.config import JobSpec, parse_spec
from bco_ray.demo.base import WORLD, train_base
from bco_ray.demo.report import DemoRound, DemoTotals, draw, write_html
from bco_ray.demo.visitors import visit
from bco_ray.demo.votes import Judgement, judge_model, sample_votes, write_log
from bco_ray.errors import SpecError
from bco_ray.pipeline.cluster import cluster
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.run import RunOutcome, run_job
from bco_ray.pipeline.served import serve_args
from bco_ray.serving.server import start_server
from bco_ray.storage import files
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import Phases, console
from bco_ray.training.metrics import MetricsLog

NAME = "demo"
MARK = ".bco-demo"
"""Lies in a directory that a demo made and may therefore replace."""

VOTES = 3000
VISITS = 500
"""Questions asked over HTTP before round 2."""

TRAINING = {"learning_rate": 5e-4, "num_train_epochs": 2, "rows_per_step": 128, "max_length": 256}
OBJECT_STORE_BYTES = 500_000_000


@dataclass(frozen=True)
class Demo:
    """Where it happens and from which seed."""

    out: Path
    seed: int
    phases: Phases
    port: int

    @property
    def base(self) -> Path:
        """The base model's directory."""
        return self.out / "base"


def run_demo(out: Path, *, seed: int, keep_serving: bool, phases: Phases) -> dict[str, Any]:
    """Run everything below `out`, print and draw what changed; returns what `summary.json` says."""
    demo = Demo(_empty(out), seed, phases, free_port(8000))
    torch.set_num_threads(1)  # matrices this small gain nothing from a second thread and lose much on a busy machine
    _make_base_and_log(demo)
    rounds = [_round_zero(demo)]
    with cluster(workers=2, object_store_bytes=OBJECT_STORE_BYTES):
        rounds.append(_train_round(demo, 1, base=str(demo.base), feedback=str(demo.out / "votes.jsonl")))
        _serve_and_collect_votes(demo)
        rounds.append(_train_round(demo, 2, base=f"{NAME}@prod", feedback="feedback"))
        summary = _report(demo, rounds)
        if keep_serving:
            _serve_until_stopped(demo)
    return summary


def _empty(out: Path) -> Path:
    """A demo starts from nothing; what a former demo left is replaced, anything else is not touched."""
    out = out.resolve()
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise SpecError(f"--out {out}: not empty and not an earlier demo. Name another directory.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    return out


def _make_base_and_log(demo: Demo) -> None:
    with demo.phases.phase("base model") as advance:
        train_base(demo.base, seed=demo.seed, progress=advance)
    with demo.phases.phase("votes") as advance:
        votes = sample_votes(demo.base, rows=VOTES, seed=demo.seed, progress=advance)
        write_log(demo.out / "votes.jsonl", votes, seed=demo.seed)


def _round_zero(demo: Demo) -> DemoRound:
    judged = _judge(demo, demo.base)
    return DemoRound("base", "base", judged.thumbs_up_rate, judged.interval, samples=judged.samples)


def _train_round(demo: Demo, number: int, *, base: str, feedback: str) -> DemoRound:
    console.rule(f"round {number}")
    outcome = run_job(resolve(_spec(demo, base, feedback)), demo.phases)
    version = outcome.version
    registry = Registry(demo.out)
    registry.promote(NAME, version.version, expected=registry.aliases(NAME).get("prod"))
    return _as_round(f"round {number}", outcome, _judge(demo, version.directory))


def _spec(demo: Demo, base: str, feedback: str) -> JobSpec:
    values = {
        "name": NAME,
        "model": {"base": base},
        "data": {"feedback": [feedback]},
        "training": {**TRAINING, "seed": demo.seed},
        "output": {"storage": str(demo.out)},
    }
    return parse_spec(values, where="bco demo")


def _judge(demo: Demo, model: Path) -> Judgement:
    """Held-out prompts, the hidden rule, no noise."""
    with demo.phases.phase("judge") as advance:
        return judge_model(model, WORLD.held_out_prompts, seed=demo.seed, progress=advance)


def _serve_and_collect_votes(demo: Demo) -> None:
    with demo.phases.phase("serve"):
        server = start_server(serve_args(f"{NAME}@prod", demo.out), port=demo.port)
    try:
        with demo.phases.phase("votes over HTTP") as advance:
            visit(server.url, f"{NAME}@prod", visits=VISITS, seed=demo.seed, progress=advance)
    finally:
        server.stop()


def _serve_until_stopped(demo: Demo) -> None:
    server = start_server(serve_args(f"{NAME}@prod", demo.out), port=demo.port)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console.print(f"\nserving {NAME}@prod on {server.url} (loopback only; Ctrl-C stops it). Ask it:")
    console.print(_curl(server.url), soft_wrap=True, highlight=False, markup=False)
    while not stop.wait(1.0):
        pass
    server.stop()


def _as_round(name: str, outcome: RunOutcome, judged: Judgement) -> DemoRound:
    return DemoRound(
        name,
        outcome.version.reference,
        judged.thumbs_up_rate,
        judged.interval,
        votes_read=outcome.scored.read,
        votes_kept=outcome.scored.kept,
        drops=outcome.scored.drops,
        samples=judged.samples,
        metrics=MetricsLog(outcome.job.run_directory / "metrics.jsonl").read(),
    )


def _report(demo: Demo, rounds: list[DemoRound]) -> dict[str, Any]:
    summary = _summary(demo, rounds)
    png = draw(rounds, demo.out / "demo.png")
    lineage = [r.model_ref for r in rounds]
    html = write_html(rounds, DemoTotals(demo.phases.seconds, lineage[-1], lineage), png, demo.out / "report.html")
    files.write_json(demo.out / "summary.json", summary)
    _print_table(rounds)
    console.print(f"picture  {png}\nreport   {html}\nsummary  {demo.out / 'summary.json'}", highlight=False)
    console.print(f"serve it: bco serve {NAME}@prod --storage {demo.out}", highlight=False, soft_wrap=True)
    console.print("ask it:   " + _curl("http://127.0.0.1:8000"), soft_wrap=True, highlight=False, markup=False)
    return summary


def _summary(demo: Demo, rounds: list[DemoRound]) -> dict[str, Any]:
    drops: dict[str, int] = {}
    for r in rounds:
        drops = {reason: drops.get(reason, 0) + r.drops.get(reason, 0) for reason in sorted({*drops, *r.drops})}
    return {
        "base_thumbs_up_rate": rounds[0].thumbs_up_rate,
        "aligned_thumbs_up_rate": rounds[-1].thumbs_up_rate,
        "rounds": [
            {"name": r.name, "model": r.model_ref, "thumbs_up_rate": r.thumbs_up_rate, "interval": r.interval}
            for r in rounds
        ],
        "model": rounds[-1].model_ref,
        "votes_read": sum(r.votes_read for r in rounds),
        "votes_kept": sum(r.votes_kept for r in rounds),
        "drops": drops,
        "seed": demo.seed,
        "seconds": demo.phases.seconds,
    }


def _print_table(rounds: list[DemoRound]) -> None:
    table = Table(title="thumbs-up rate on held-out prompts, judged by the hidden rule")
    for column in ("", "model", "thumbs-up", "95 % interval", "votes read", "kept"):
        table.add_column(column, justify="right" if column not in ("", "model") else "left")
    for r in rounds:
        low, high = r.interval
        votes = (str(r.votes_read), str(r.votes_kept)) if r.votes_read else ("", "")
        table.add_row(r.name, r.model_ref, f"{r.thumbs_up_rate:.1%}", f"{low:.1%} - {high:.1%}", *votes)
    console.print(table)


def _curl(url: str) -> str:
    question = WORLD.held_out_prompts[0].text.replace('"', '\\"').replace("'", "")
    body = f'{{"model": "{NAME}@prod", "messages": [{{"role": "user", "content": "{question}"}}]}}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def free_port(wanted: int = 0) -> int:
    """`wanted` if nothing listens there, else a free port below the range Ray gives its workers."""
    for port in (wanted, *range(20_100, 20_200)):
        with socket.socket() as probe:
            if port and probe.connect_ex(("127.0.0.1", port)) != 0:
                return int(port)
    raise SpecError("no free port between 20100 and 20199.")
