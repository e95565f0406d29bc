"""What `bco evaluate` prints for people: the numbers with their intervals, and whether the gate opens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

Json = dict[str, Any]


def show(result: Json) -> None:
    """On stdout."""
    for line in lines(result):
        typer.echo(line)


def lines(result: Json) -> Iterator[str]:
    """Of a result as `--json` prints it."""
    found = result["evaluation"]
    yield f"model: {result['model']}"
    yield from _votes(found["votes"])
    if found["kl_on_policy"]["value"] is not None:
        yield f"kl to the reference on its own answers: {_said(found['kl_on_policy'])}"
    for other in found["opponents"]:
        yield from _opponent(other)
    if found["regression"]:
        failed = [case for case in found["regression"] if case["problems"]]
        yield f"regression: {len(found['regression']) - len(failed)} of {len(found['regression'])} passed"
        yield from (f"  {case['name']}: {'; '.join(case['problems'])}" for case in failed)
    yield from (f"note: {note}" for note in found["notes"])
    gate = result["gate"]
    yield f"gate: {gate if isinstance(gate, str) else 'not passed'}"
    yield from (f"  {reason}" for reason in gate if not isinstance(gate, str))
    yield f"report: {result['report']}"


def _votes(votes: Json | None) -> Iterator[str]:
    if votes is None:
        return
    yield f"held-out votes: {votes['rows']} ({votes['ups']} up) on {votes['prompts']} prompts"
    for name, estimate in votes["metrics"].items():
        yield f"  {name}: {_said(estimate)}"


def _opponent(other: Json) -> Iterator[str]:
    yield f"against {other['model']} ({other['role']}):"
    if other["difference"]:
        yield f"  auc better by: {_said(other['difference']['auc'])}"
    if rate := other["win_rate"]:
        counts = f"{rate['wins']} wins, {rate['ties']} ties, {rate['losses']} losses"
        undecided = f", {rate['undecided']} without a verdict" if rate["undecided"] else ""
        yield f"  win rate: {_said(rate['rate'])} ({counts}{undecided}; {rate['judge']})"


def _said(estimate: Json) -> str:
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.4g}"
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
