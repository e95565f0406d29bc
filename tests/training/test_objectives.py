"""Every loss through the same loop: what it is made of, that workers and packs do not matter, that it learns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bco_ray.errors import TrainingError
from bco_ray.models.loading import load_frozen
from bco_ray.models.policy import Policy
from bco_ray.objective import LOSSES, Loss, RewardShift, ShiftTensor, SourceOffsets
from bco_ray.storage.scored import load_scored, pair_places
from bco_ray.testing.scored import write_scored
from bco_ray.training.batches import Share, mismatch, window_batches
from bco_ray.training.building import build
from bco_ray.training.gang import SoloGang
from bco_ray.training.plan import Plan
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import Row, ShardReader
from bco_ray.training.step import Objective, StepNumbers, train_window

LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}


def objective(name: str, **more: Any) -> Objective:
    kind: Loss = LOSSES[name]
    return Objective(beta=0.1, desirable_weight=kind.gain, undesirable_weight=kind.gain, loss=name, **more)


def reference_for(name: str) -> str:
    return "live" if LOSSES[name].mismatched else "precomputed"


def curve(run: Any, *names: str) -> list[list[float]]:
    return [[row[name] for name in names] for row in run.metrics]


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bco"])
def test_packs_and_workers_change_nothing(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], two_workers: dict[str, Any], name: str
) -> None:
    setup = make_setup(f"one-{name}", objective=objective(name), reference=reference_for(name), rows_per_step=12)
    one = run_here(setup)
    two = two_workers[name]
    np.testing.assert_allclose(curve(two, "loss", "grad_norm"), curve(one, "loss", "grad_norm"), rtol=1e-5)
    if name == "kto":  # a difference of log-probabilities near -80 in float32
        np.testing.assert_allclose(curve(two, "z_ref"), curve(one, "z_ref"), rtol=1e-5, atol=2e-6)
    mine, theirs = (torch.cat([w.flatten() for w in run.weights.values()]) for run in (two, one))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


def test_packs_and_workers_change_nothing_where_labels_are_presumed_wrong(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], two_workers: dict[str, Any]
) -> None:
    changed = objective("bco", label_noise=0.2)
    one = run_here(make_setup("one-noise", objective=changed, rows_per_step=12))
    plain = run_here(make_setup("no-noise", objective=objective("bco"), rows_per_step=12))
    names = ("loss", "grad_norm", "delta")
    np.testing.assert_allclose(curve(two_workers["noise"], *names), curve(one, *names), rtol=1e-5, atol=1e-7)
    assert one.metrics[0]["loss"] == pytest.approx(plain.metrics[0]["loss"])
    assert one.metrics[0]["grad_norm"] == pytest.approx(0.6 * plain.metrics[0]["grad_norm"], rel=1e-5)


def test_packs_and_workers_change_nothing_where_sources_have_their_own_delta(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], two_workers: dict[str, Any]
) -> None:
    plain = two_workers["bco"]
    offsets = SourceOffsets({"web": 0.4, "app": -0.7}, other=0.2)
    one, two = run_here(make_setup("one-by-source", offsets=offsets, rows_per_step=12)), two_workers["by_source"]
    np.testing.assert_allclose(curve(two, "loss", "grad_norm"), curve(one, "loss", "grad_norm"), rtol=1e-5)
    np.testing.assert_allclose(curve(two, "delta"), curve(one, "delta"), rtol=1e-5, atol=2e-6)
    assert abs(one.metrics[0]["loss"] - plain.metrics[0]["loss"]) > 1e-3, "offsets are in the loss from the start"
    assert one.metrics[0]["delta"] == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_learns_what_it_is_for(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    setup = make_setup(f"learns-{name}", objective=objective(name), reference=reference_for(name), epochs=20,
                       rows_per_step=16, learning_rate=1e-2, lr_scheduler="constant")  # fmt: skip
    write_scored(tmp_path / "scored", Path(setup.model), chosen=24, rejected=24, seed=1)
    metrics = run_here(replace(setup, scored=str(tmp_path / "scored"))).metrics
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    if name == "sft":
        assert metrics[-1]["logps/chosen"] > metrics[0]["logps/chosen"] + 10
        assert {row["count/rejected"] for row in metrics} == {0}
    else:
        assert metrics[-1]["auc"] > 0.95


def test_a_worker_without_a_pair_still_takes_part(
    make_setup: Callable[..., TrainSetup], world: tuple[Path, Path]
) -> None:
    manifest = load_scored(world[1])
    reader = ShardReader(world[1], manifest, units="pairs", cached_shards=3)
    plan = next(Plan(reader.counts, 1, 1, 0).windows())
    trainee = build(make_setup("idle", objective=objective("dpo")), SoloGang(), total_steps=9)
    idle = window_batches(reader, plan, Share(1, 2, 60))
    assert [batch.valid_B.tolist() for batch in idle.batches] == [[False, False]]
    shift = ShiftTensor.of(RewardShift())
    result = train_window(trainee.engine, SoloGang(), trainee.reference, idle, shift, objective("dpo"))
    numbers = StepNumbers.read(result.numbers)
    assert numbers.grad_norm == 0
    assert numbers.sums.chosen_count == 0


def test_erased_rows_are_in_no_denominator(world: tuple[Path, Path]) -> None:
    reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
    plan = next(Plan(reader.counts, 6, 1, 3).windows())
    whole = window_batches(reader, plan, Share(0, 1, 4096)).totals
    unit, erased = reader.unit, plan.rows[0]
    reader.unit = lambda ref: [replace(unit(ref)[0], weight=0.0)] if ref == erased else unit(ref)  # type: ignore[method-assign]
    rest = window_batches(reader, plan, Share(0, 1, 4096)).totals
    assert rest.chosen + rest.rejected == whole.chosen + whole.rejected - 1
    assert rest.chosen == whole.chosen - erased.label


def test_an_sft_anchor_holds_the_likelihood_up(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]
) -> None:
    runs = []
    for weight in (0.0, 1.0):
        changed = objective("bco", sft_weight=weight)
        runs.append(run_here(make_setup(f"anchor{weight}", objective=changed, epochs=3, learning_rate=3e-3)).metrics)
    assert runs[1][-1]["logps/chosen"] > runs[0][-1]["logps/chosen"] + 1


def test_all_three_references_start_at_exactly_zero_and_agree(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]
) -> None:
    """Over many packs, so that rows are scored in other company than when the column was made."""
    runs = {}
    for kind in ("precomputed", "adapter_off", "live"):
        setup = make_setup(f"ref-{kind}", reference=kind, adapter=LORA, max_tokens_per_micro_batch=40)
        runs[kind] = run_here(setup)
        first = runs[kind].metrics[0]
        assert first["rewards/chosen"] == first["rewards/rejected"] == first["kl"] == 0.0
    names = ("loss", "delta", "rewards/margins")
    assert curve(runs["live"], *names) == curve(runs["adapter_off"], *names) == curve(runs["precomputed"], *names)


def test_an_adapter_that_is_continued_is_not_its_own_reference(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]
) -> None:
    first = run_here(make_setup("round-1", adapter=LORA))
    again = {"adapter": LORA, "model": str(first.directory / "model")}
    with pytest.raises(TrainingError, match="adapter_off needs model.adapter on top of the reference model"):
        run_here(make_setup("round-2-off", reference="adapter_off", **again))
    live = run_here(make_setup("round-2-live", reference="live", **again))
    assert live.metrics[0]["rewards/chosen"] == 0.0


def test_a_policy_away_from_its_reference_is_probed(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], world: tuple[Path, Path]
) -> None:
    moved = run_here(make_setup("moved", epochs=2, learning_rate=3e-3))
    setup = make_setup("on-from-there", model=str(moved.directory / "model"), reference_model=str(world[0]))
    first = run_here(setup).metrics[0]
    middle = (first["rewards/chosen"] + first["rewards/rejected"]) / 2
    assert first["delta"] != 0
    assert first["delta"] == pytest.approx(middle, abs=0.3 * abs(first["rewards/margins"]))


def test_pairs_share_a_prompt_and_the_smaller_weight(world: tuple[Path, Path]) -> None:
    manifest = load_scored(world[1])
    reader = ShardReader(world[1], manifest, units="pairs", cached_shards=3)
    plan = next(Plan(reader.counts, 8, 1, 0).windows())
    pairs = [reader.unit(ref) for ref in plan.rows]
    assert len(pairs) == 8
    assert all((up.label, down.label) == (True, False) and up.weight == down.weight for up, down in pairs)
    assert any(up.weight not in (0.0, 1.0) for up, _ in pairs), "the down's weight, where it is smaller"
    window = window_batches(reader, plan, Share(0, 1, 60))
    assert all(batch.labels_B.tolist()[::2] == [True] * (len(batch.labels_B) // 2) for batch in window.batches)


def test_pairs_are_made_in_order_on_each_prompt() -> None:
    assert pair_places(np.array([5, 7, 5, 5]), np.array([5, 9, 5, 7])).tolist() == [[0, 0], [1, 3], [2, 2]]
    assert pair_places(np.array([1]), np.array([2])).shape == (0, 2)


def test_a_log_without_pairs_says_so(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    setup = make_setup("no-pairs", objective=objective("dpo"))
    write_scored(tmp_path / "scored", Path(setup.model), chosen=2, rejected=0, shards=1)
    with pytest.raises(TrainingError, match="objective.loss dpo is made of pairs of an up and a down"):
        run_here(replace(setup, scored=str(tmp_path / "scored")))


def test_mismatched_rows_join_prompts_with_others_completions() -> None:
    def row(prompt: list[int], completion: list[int], weight: float = 1.0) -> Row:
        ids = np.array(prompt + completion)
        return Row(ids, np.arange(len(ids)) >= len(prompt), -1.0, label=True, weight=weight)

    rows = [row([1, 2, 3], [4]), row([5], [6, 7, 8]), row([9, 9], [10, 11], weight=0.0)]
    joined = mismatch(rows)
    assert [j.input_ids.tolist() for j in joined] == [[3, 6, 7, 8], [5, 10, 11], [9, 9, 4]]
    assert [int(j.completion_mask.sum()) for j in joined] == [3, 2, 1]
    assert [j.weight for j in joined] == [1.0, 0.0, 0.0], "an erased row takes no part"


def test_kto_measures_its_reference_point_on_mismatched_rows(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], world: tuple[Path, Path]
) -> None:
    """By hand from the exported weights: z of the last step's window is that of the weights before that step."""
    setup = make_setup("z", objective=objective("kto"), reference="live", learning_rate=3e-3, rows_per_step=40)

    def wait_for_the_checkpoint(step: int) -> None:  # one that is due while another is written would be left out
        deadline = time.monotonic() + 60
        while not (Path(setup.run) / f"checkpoints/{step + 1:08d}/manifest.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    run = run_here(replace(setup, epochs=2, checkpoint_every=1, checkpoint_keep=9), after_step=wait_for_the_checkpoint)
    assert run.metrics[0]["z_ref"] == 0.0
    reader = ShardReader(world[1], load_scored(world[1]), cached_shards=3)
    plan = list(Plan(reader.counts, 40, 2, 3).windows())[-1]
    window = window_batches(reader, plan, Share(0, 1, 4096), mismatched=True)
    base = Policy(load_frozen(world[0], dtype=torch.float32))
    before = Policy(load_frozen(world[0], dtype=torch.float32))
    shapes = {name: tensor.shape for name, tensor in before.state_dict().items()}
    state = {name: flat.view(shapes[name]) for name, flat in run.weights_at(plan.step).items()}
    before.load_state_dict(state, strict=False)
    with torch.no_grad():
        ratios = torch.cat([before(b.pack) - base(b.pack) for b in window.mismatched])
    assert run.metrics[-1]["z_ref"] == pytest.approx(max(0.0, float(ratios.mean())), rel=1e-4, abs=1e-6)
