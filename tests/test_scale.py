"""docs/scale.md says what the simulation says, which is held to measured runs and to the code's own limits."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.feedback.records import bits_for
from bco_ray.feedback.sources import SourceFile

ROOT = Path(__file__).parents[1]
MODULES = ("costs", "limits", "plans", "stages", "text", "training", "validation")


@pytest.fixture(scope="module")
def scale() -> Iterator[Any]:
    """The modules of the simulation by their last word, and `main`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        found = {name: importlib.import_module(f"scale_{name}") for name in MODULES}
        yield SimpleNamespace(**found, main=importlib.import_module("simulate_scale"))


def test_the_page_is_what_the_script_says(scale: Any) -> None:
    _, there, _ = scale.main.between((ROOT / "docs" / "scale.md").read_text())
    said = scale.main.tables(scale.main.arguments([]))
    assert there == said, "run: python benchmarks/simulate_scale.py --write --picture docs/scale.png"


def test_no_prediction_is_further_off_than_is_stated(scale: Any) -> None:
    found = scale.validation.comparisons()
    assert {"1 worker", "2 workers"} <= {one.what.split(", ")[-1] for one in found}
    worst = max(one.factor for one in found)
    assert 1 <= worst <= scale.validation.STATED_FACTOR


def test_all_of_it_is_json(scale: Any) -> None:
    found = json.loads(json.dumps(scale.main.everything(scale.main.arguments([])), allow_nan=False))
    assert {(p["votes"], p["model"]) for p in found["plans"]} == {
        (votes, model.name) for votes in scale.plans.VOTES for model in scale.costs.MODELS
    }
    assert {one["where"] for one in found["measured"].values()}
    assert found["assumed"]["spot_hours"] is None


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(scale: Any) -> None:
    plans = [run(scale, seed=seed, node_mtbf_hours=50) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0].run != plans[2].run
    assert plans[0].step != plans[2].step


@pytest.mark.parametrize("votes", [1e3, 1e6, 1e8, 1e10])
def test_a_log_is_cut_as_reading_cuts_it(scale: Any, votes: float) -> None:
    job = scale.costs.Job()
    cut = scale.limits.Cut.of(votes, job)
    assert cut.buckets == 2 ** bits_for((SourceFile("log.jsonl", int(votes * job.vote_bytes), 0),))


def test_a_wire_is_as_quick_as_its_bytes_and_its_hops(scale: Any) -> None:
    hardware = replace(scale.costs.Hardware(), network_latency=1e-3)
    wire, one = scale.training.Wire(hardware), 1e9 / 1e9
    assert wire.all_reduce(1e9, 1) == 0
    assert wire.all_reduce(1e9, 8) == pytest.approx(2 * (one * 7 / 8 / hardware.nvlink_gb + 3e-3))
    assert wire.all_reduce(1e9, 64) == pytest.approx(2 * (one * 63 / 64 / hardware.network_gb + 6e-3))


def test_zero_sends_what_its_paper_says(scale: Any) -> None:
    """In bytes by weight and step, of two bytes each (ours: four): 2 halves, and 1 or 3 for each of 5 micro-batches."""
    volumes = [scale.training.volume(stage, 1.0).halves(5) for stage in range(4)]
    assert volumes == [2 * 4, 2 * 2, 2 + 5 * 2, 5 * 3 * 2]


def test_state_is_shared_out_by_stage(scale: Any) -> None:
    model, job = scale.costs.Model("m", 1e9, 1, 1), scale.costs.Job(pack_tokens=1)
    memory = [scale.training.gpu_memory(stage, model, 8, job) / 1e9 for stage in range(4)]
    assert memory == pytest.approx([18, 4 + 12 / 8, 2 + 16 / 8, 18 / 8 + 2], rel=1e-3)


def run(scale: Any, seed: int = 0, **changes: float) -> Any:
    """8B on 64 workers, 1e8 votes."""
    hardware, job = replace(scale.costs.Hardware(), **changes), scale.costs.Job()
    return scale.plans.plan(1e8, scale.costs.MODELS[1], 64, hardware, job, seed)


def test_without_failures_a_run_is_its_steps_and_its_copies(scale: Any) -> None:
    found = run(scale, node_mtbf_hours=1e12)
    assert found.run.failures == 0
    assert found.run.seconds == pytest.approx(found.run.steps * found.step.seconds + found.run.checkpointing)


def test_failures_cost_work_and_notices_only_restarts(scale: Any) -> None:
    never, failing = run(scale, node_mtbf_hours=1e12), run(scale, node_mtbf_hours=50)
    noticed = run(scale, node_mtbf_hours=1e12, spot_hours=50)
    assert noticed.run.lost == 0 < failing.run.lost
    for one in (failing, noticed):
        assert one.run.failures > 0
        extra = one.run.lost + one.run.restarting + one.run.replanning
        assert one.run.seconds == pytest.approx(never.run.seconds + extra, rel=1e-6)


def test_where_failures_are_quicker_than_restarts_nothing_ends(scale: Any) -> None:
    found = run(scale, node_mtbf_hours=0.05)
    assert math.isinf(found.run.seconds)
    assert found.as_json()["run"]["seconds"] is None


def test_no_plan_is_better_than_ideal_and_all_fit(scale: Any) -> None:
    hardware, job = scale.costs.Hardware(), scale.costs.Job()
    for model in scale.costs.MODELS:
        plans = list(scale.plans.all_plans(1e8, model, hardware, job, 0))
        assert plans
        assert all(0 < one.efficiency <= 1.01 for one in plans)
        assert all(one.gpu_bytes <= 0.9 * hardware.gpu_memory_gb * 1e9 for one in plans)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0 B"), (17_000, "17 kB"), (999, "1,000 B"), (4.4e14, "440 TB"), (2.5e9, "2.5 GB")]
)
def test_bytes_in_two_digits(scale: Any, value: float, said: str) -> None:
    assert scale.text.size(value) == said
