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
from bco_ray.models.loading import load_frozen
from bco_ray.models.policy import Policy
from bco_ray.objective import RewardShift, ShiftTensor
from bco_ray.storage.scored import load_scored
from bco_ray.testing.scored import write_scored
from bco_ray.training import loop
from bco_ray.training.batches import Share, WindowBatches, assemble, window_batches
from bco_ray.training.building import Trainee, build
from bco_ray.training.fragments import host_copy
from bco_ray.training.gang import SoloGang
from bco_ray.training.plan import Plan
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import ShardReader
from bco_ray.training.step import StepNumbers, train_window


def first_window(scored: Path, max_tokens: int = 60) -> WindowBatches:
    """Six rows in several micro-batches."""
    reader = ShardReader(scored, load_scored(scored), cached_shards=3)
    plan = next(Plan(reader.counts, 6, 1, 3).windows())
    return window_batches(reader, plan, Share(0, 1, max_tokens))


def take_step(
    setup: TrainSetup, trainee: Trainee, window: WindowBatches, shift: RewardShift
) -> tuple[StepNumbers, RewardShift]:
    """What the step says, and the shift after it."""
    tensor = ShiftTensor.of(shift, trainee.engine.device)
    result = train_window(trainee.engine, SoloGang(), trainee.reference, window, tensor, setup.objective)
    return StepNumbers.read(result.numbers), result.shift.value()


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone, which is what DeepSpeed needs (one: it remembers the group)."""
    os.environ["LOCAL_RANK"] = "0"
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()  # DeepSpeed goes on believing in it: no later module may start another
    del os.environ["LOCAL_RANK"]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_row_that_is_not_finite_stops_the_update_and_the_shift(
    make_setup: Callable[..., TrainSetup], world: tuple[Path, Path], process_group: None, zero_stage: int
) -> None:
    setup = make_setup(f"nan{zero_stage}", zero_stage=zero_stage)
    trainee = build(setup, SoloGang(), total_steps=20)
    window = first_window(world[1])
    first = window.batches[0]
    spoiled = replace(first, reference_logps_B=torch.full_like(first.reference_logps_B, -torch.inf))
    before = {name: tensor.clone() for name, tensor in trainee.engine.export_state().items()}
    shift = RewardShift(half_life_rows=30)
    numbers, after = take_step(setup, trainee, replace(window, batches=(spoiled, *window.batches[1:])), shift)
    assert numbers.grad_norm is None
    assert after == shift
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainee.engine.export_state().items())
    numbers, after = take_step(setup, trainee, window, shift)
    assert numbers.grad_norm is not None
    assert after.rows_seen == 6
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainee.engine.export_state().items())


def test_a_checkpoint_from_before_the_first_update_can_be_loaded(
    make_setup: Callable[..., TrainSetup], restore: Callable[..., None]
) -> None:
    setup = make_setup("fresh")
    engine = build(setup, SoloGang(), total_steps=20).engine
    restore(engine, host_copy(engine.fragments(), {}), 0)
    assert engine.learning_rate == pytest.approx(setup.learning_rate / 2)


def test_a_step_that_was_skipped_is_in_no_checkpoints_means(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is no JSON: the manifest could not be written, and the run would fail at the same step again and again."""
    whole = loop.train_window

    def spoil_the_third(engine: Any, gang: Any, reference: Any, window: Any, *more: Any, **options: Any) -> Any:
        if window.plan.step == 2:
            first = window.batches[0]
            bad = replace(first, reference_logps_B=torch.full_like(first.reference_logps_B, -torch.inf))
            window = replace(window, batches=(bad, *window.batches[1:]))
        return whole(engine, gang, reference, window, *more, **options)

    monkeypatch.setattr(loop, "train_window", spoil_the_third)
    run = run_here(make_setup("one-nan", checkpoint_every=1, max_tokens_per_micro_batch=40))
    assert run.metrics[2]["grad_norm"] is None
    assert run.outcome["skipped_steps"] == 1


def test_a_run_that_cannot_take_a_step_gives_up(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        run_here(make_setup("hopeless", learning_rate=float("inf")))


def test_a_filler_row_changes_nothing(make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]) -> None:
    window = first_window(world[1])
    results = []
    for fillers in (0, 2):
        setup = make_setup(f"filler{fillers}")
        trainee = build(setup, SoloGang(), total_steps=20)
        longer = replace(window, batches=(*window.batches, *[assemble([], [], 6)] * fillers))
        numbers, shift = take_step(setup, trainee, longer, RewardShift())
        results.append((numbers.sums.to_vector(), numbers.rewards_W, weights_of(trainee.policy), shift.state_dict()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*(r[:3] for r in results), strict=True))
    assert results[0][3] == results[1][3]


def test_tiny_overfit(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], tmp_path: Path) -> None:
    """32 rows, many epochs: every row ends on its label's side of delta."""
    setup = make_setup("overfit", epochs=25, rows_per_step=16, learning_rate=1e-2, lr_scheduler="constant")
    write_scored(tmp_path / "scored", Path(setup.model), chosen=16, rejected=16, seed=1)
    metrics = run_here(replace(setup, scored=str(tmp_path / "scored"))).metrics
    assert [m["rewards/accuracies"] for m in metrics[-2:]] == [1.0, 1.0]
    assert [m["auc"] for m in metrics[-2:]] == [1.0, 1.0]
    assert metrics[-1]["rewards/margins"] > 1.0


def test_an_erased_row_moves_neither_the_weights_nor_the_shift(
    make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]
) -> None:
    """Tombstones keep their place in a window's plan; the step is as if only the others were there."""
    setup = make_setup("erased", zero_stage=0)
    window = first_window(world[1])
    reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
    rows = [reader.unit(ref)[0] for ref in window.plan.rows]
    grave = {"input_ids": np.zeros(2, np.int64), "completion_mask": np.array([False, True]), "reference_logp": 0.0}
    buried = [replace(rows[0], weight=0.0, **grave), *rows[1:]]
    results = []
    for batch in (assemble(buried, range(6), 6), assemble(rows[1:], range(1, 6), 6)):
        trainee = build(setup, SoloGang(), total_steps=20)
        shift = RewardShift(half_life_rows=30)
        results.append(take_step(setup, trainee, replace(window, batches=(batch,)), shift))
    (numbers, shift), (others, other_shift) = results
    assert shift == other_shift
    assert numbers.grad_norm == pytest.approx(others.grad_norm, rel=1e-6)
    assert torch.allclose(numbers.sums.to_vector(), others.sums.to_vector(), rtol=1e-6)


def test_small_updates_add_up_in_bfloat16(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> None:
    """One step moves no bfloat16 weight by as much as it can show; the float32 masters remember it."""
    slow = {"learning_rate": 2e-5, "weight_decay": 0.0, "lr_scheduler": "constant", "warmup_ratio": 0.0}
    runs = {bf16: run_here(make_setup(f"masters-{bf16}", bf16=bf16, **slow)) for bf16 in (False, True)}
    before = Policy(load_frozen(make_setup("unmoved").model, dtype=torch.float32)).lm.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    master = runs[True].weights_at(20)[f"lm.{name}"].view_as(before[name])
    moved = {"master": master - before[name], "plain": runs[False].weights[name] - before[name]}
    assert master.dtype == torch.float32
    agreement = torch.cosine_similarity(moved["master"].flatten(), moved["plain"].flatten(), dim=0)
    assert agreement > 0.9
    assert moved["master"].norm() == pytest.approx(float(moved["plain"].norm()), rel=0.1)


def test_one_step_waits_for_nothing(make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]) -> None:
    """On a GPU each question would hold up everything that comes after it."""
    setup = make_setup("no-wait")
    trainee = build(setup, SoloGang(), total_steps=20)
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
            plain = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, _noting(asked, name, plain))
        shift = ShiftTensor.of(setup.initial_shift)
        window = first_window(world[1])
        asked.clear()
        train_window(trainee.engine, SoloGang(), trainee.reference, window, shift, setup.objective)
    assert asked == []


def _noting(asked: list[str], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def note(*arguments: Any) -> Any:
        asked.append(name)
        return plain(*arguments)

    return note
