"""The step's guards: rows that are not finite, and what must not move then."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bco_ray.errors import TrainingError
from bco_ray.models.loading import load_policy
from bco_ray.models.policy import Policy
from bco_ray.objective import RewardShift
from bco_ray.storage.scored import load_scored
from bco_ray.testing.scored import write_scored
from bco_ray.training import loop
from bco_ray.training.batches import ShardReader, assemble, micro_batches
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import TrainSetup, make_engine
from bco_ray.training.plan import Plan
from bco_ray.training.step import WindowTotals, train_window


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone, which is what DeepSpeed needs (one: it remembers the group)."""
    os.environ["LOCAL_RANK"] = "0"
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    del os.environ["LOCAL_RANK"]


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_row_that_is_not_finite_stops_the_update_and_the_shift(
    make_setup: Callable[..., TrainSetup], world: tuple[Path, Path], process_group: None, zero_stage: int
) -> None:
    setup = make_setup(f"nan{zero_stage}", zero_stage=zero_stage)
    policy = Policy(load_policy(setup.model, None, dtype=torch.float32))
    engine = make_engine(setup, policy, SoloGang(), total_steps=20)
    reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
    window = next(Plan(reader.counts, 6, 1, 3).windows())
    batches = micro_batches(reader, window, rank=0, workers=1, max_tokens=60)
    spoiled = replace(batches[0], reference_logps_B=torch.full_like(batches[0].reference_logps_B, -torch.inf))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    shift, rate = RewardShift(half_life_rows=30), engine.learning_rate
    totals = WindowTotals(window.chosen, window.rejected)
    result = train_window(engine, SoloGang(), [spoiled, *batches[1:]], totals, shift, setup.objective)
    assert result.grad_norm is None
    assert result.shift is shift
    assert engine.learning_rate == rate
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    good = train_window(engine, SoloGang(), batches, totals, shift, setup.objective)
    assert good.grad_norm is not None
    assert good.shift.rows_seen == 6


def test_a_checkpoint_from_before_the_first_update_can_be_loaded(
    make_setup: Callable[..., TrainSetup], tmp_path: Path
) -> None:
    setup = make_setup("fresh")
    policy = Policy(load_policy(setup.model, None, dtype=torch.float32))
    engine = make_engine(setup, policy, SoloGang(), total_steps=20)
    engine.save(tmp_path)
    engine.load(tmp_path)
    assert engine.learning_rate == pytest.approx(setup.learning_rate / 2)


def test_a_run_that_cannot_take_a_step_gives_up(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        run_here(make_setup("hopeless", learning_rate=float("inf")))


def test_a_filler_row_changes_nothing(make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]) -> None:
    results = []
    for fillers in (0, 2):
        setup = make_setup(f"filler{fillers}")
        policy = Policy(load_policy(setup.model, None, dtype=torch.float32))
        engine = make_engine(setup, policy, SoloGang(), total_steps=20)
        reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
        window = next(Plan(reader.counts, 6, 1, 3).windows())
        batches = micro_batches(reader, window, rank=0, workers=1, max_tokens=60) + [assemble([])] * fillers
        totals = WindowTotals(window.chosen, window.rejected)
        result = train_window(engine, SoloGang(), batches, totals, RewardShift(), setup.objective)
        weights = torch.cat([p.detach().flatten() for p in policy.parameters()])
        results.append((result.loss, result.grad_norm, result.shift.state_dict(), weights))
    assert results[0][:3] == results[1][:3]
    assert torch.equal(results[0][3], results[1][3])


def test_tiny_overfit(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], tmp_path: Path) -> None:
    """32 rows, many epochs: every row ends on its label's side of delta."""
    setup = make_setup("overfit", epochs=25, rows_per_step=16, learning_rate=1e-2, lr_scheduler="constant")
    write_scored(tmp_path / "scored", Path(setup.model), chosen=16, rejected=16, seed=1)
    metrics = run_here(replace(setup, scored=str(tmp_path / "scored"))).metrics
    assert [m["rewards/accuracies"] for m in metrics[-2:]] == [1.0, 1.0]
    assert metrics[-1]["rewards/margins"] > 1.0


def test_an_erased_row_moves_neither_the_weights_nor_the_shift(
    make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]
) -> None:
    """Tombstones keep their place in a window's plan; the step is as if only the others were there."""
    setup = make_setup("erased", zero_stage=0)
    reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
    window = next(Plan(reader.counts, 6, 1, 3).windows())
    rows = [reader.row(ref) for ref in window.rows]
    grave = {"input_ids": np.zeros(2, np.int64), "completion_mask": np.array([False, True]), "reference_logp": 0.0}
    buried = [replace(rows[0], weight=0.0, **grave), *rows[1:]]
    results = []
    for batch in (assemble(buried), assemble(rows[1:])):
        policy = Policy(load_policy(setup.model, None, dtype=torch.float32))
        engine = make_engine(setup, policy, SoloGang(), total_steps=20)
        totals = WindowTotals(window.chosen, window.rejected)
        results.append(
            train_window(engine, SoloGang(), [batch], totals, RewardShift(half_life_rows=30), setup.objective)
        )
    assert results[0].shift == results[1].shift
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-6)
