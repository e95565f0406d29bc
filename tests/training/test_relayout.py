"""A run that goes on with another number of workers takes the same steps: ZeRO 0 to 3, whole model and adapter.

Every run stops of its own accord after two steps; float32 ones are held to one worker on plain torch that never stops.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bco_ray.training import stopping
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.setup import TrainSetup

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": {"r": 4, "alpha": 8, "target_modules": "all-linear"}, "learning_rate": 5e-3},
    "bf16": {"bf16": True},
}
CASES = [*((kind, stage) for kind in ("full", "lora") for stage in range(4)), ("bf16", 2)]
STEPS, STOPPED = 6, 2
ROUNDING = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0,
            "delta": 2e-6, "rewards/chosen": 2e-6, "rewards/rejected": 2e-6}  # fmt: skip
"""What float32 cannot know, absolute: a reward is beta times a difference of two log-probabilities near -80."""


def settings(kind: str, **more: Any) -> dict[str, Any]:
    return {"rows_per_step": 20, "max_tokens_per_micro_batch": 60, **KINDS[kind], **more}


@pytest.fixture(scope="module")
def whole(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> dict[str, Any]:
    """By kind: one worker, plain torch, to the end."""
    return {kind: run_here(make_setup(f"relayout-{kind}", **settings(kind))) for kind in KINDS}


@pytest.fixture(scope="module")
def runs(make_setup: Callable[..., TrainSetup], run_processes: Callable[..., Any]) -> dict[str, Any]:
    """By `<kind>-<stage>-<first>-<second>`: begun on so many workers and ended on others.

    One worker begins on plain torch, whatever the stage is to be: that saves a start of processes and tries more.
    """

    def setups(route: str) -> list[TrainSetup]:
        return [make_setup(f"{k}-{s}-{route}", **settings(k, zero_stage=s)) for k, s in CASES]

    down, up = setups("2-1"), setups("1-2")
    for setup in (*down, *up):
        stopping.ask_to_stop(Path(setup.run), "for another number of workers")
    for setup in up:
        assert train(dataclasses.replace(setup, zero_stage=0), SoloGang()).stopped
        stopping.withdraw(Path(setup.run))
    done = run_processes([*up, *down], 2)[: len(up)]
    for setup in down:
        stopping.withdraw(Path(setup.run))
    done += run_processes(down, 1)
    return {trained.directory.name: trained for trained in done}


def starts(run: Path) -> list[tuple[int, int]]:
    """(step, workers) of every beginning."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(event["step"], event["workers"]) for event in events if event["event"] == "training"]


@pytest.mark.parametrize("route", ["2-1", "1-2"])
@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_the_same_steps_on_another_number_of_workers(
    runs: dict[str, Any], whole: dict[str, Any], kind: str, stage: int, route: str
) -> None:
    got, wanted = runs[f"{kind}-{stage}-{route}"], whole[kind]
    first, second = map(int, route.split("-"))
    assert starts(got.directory) == [(0, first), (STOPPED, second)]
    assert [row["step"] for row in got.metrics] == list(range(STEPS))
    relative, absolute = (2e-2, 2e-2) if kind == "bf16" else (1e-5, 0.0)
    for mine, theirs in zip(got.metrics, wanted.metrics, strict=True):
        for name, rounding in ROUNDING.items():
            expected = pytest.approx(theirs[name], rel=relative, abs=max(rounding, absolute))
            assert mine[name] == expected, (theirs["step"], name)
    mine, theirs = (torch.cat([run.weights[n].flatten() for n in wanted.weights]).double() for run in (got, wanted))
    assert float((mine - theirs).norm() / theirs.norm()) < relative
    for name in ("next_step", "tokens_seen", "skipped_steps"):
        assert got.outcome[name] == wanted.outcome[name]
    assert got.outcome["shift"]["rows_seen"] == wanted.outcome["shift"]["rows_seen"]
