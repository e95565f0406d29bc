"""Golden trajectories: 50 steps of every engine on 1 and 2 workers are those of a plain loop that shares no code.

Tolerances: 1e-4 relative for loss and gradient norm, plus 1e-5 absolute for delta and, over all weights, 1e-4 in L2:
two float32 computations that differ in every kernel drift apart by as much in 50 steps of Adam at a high rate.
`tests/data/golden.json` holds the plain loop's numbers as they were when somebody last gave a reason to change them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bco_ray.models.loading import load_policy
from bco_ray.objective import RewardShift, ShiftSums, SourceOffsets
from bco_ray.storage.scored import load_scored
from bco_ray.training.plan import Plan
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import Row, ShardReader

KINDS = {"full": None, "lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"}}
STAGES = (0, 1, 2, 3)
GOLDEN = Path(__file__).parents[1] / "data" / "golden.json"

Trajectory = tuple[np.ndarray, dict[str, Tensor]]
"""(steps, [loss, delta, grad_norm]), and the trained weights by name."""


def settings(kind: str, **more: Any) -> dict[str, Any]:
    rate = 1e-3 if kind == "full" else 5e-3
    return {
        "adapter": KINDS[kind],
        "epochs": 5,
        "rows_per_step": 12,
        "learning_rate": rate,
        "max_tokens_per_micro_batch": 100,
        **more,
    }


@pytest.fixture(scope="module")
def textbook(make_setup: Callable[..., TrainSetup]) -> dict[str, Trajectory]:
    """By kind of training."""
    found = {}
    for kind in KINDS:
        found[kind] = train_plainly(make_setup(f"plain-{kind}", **settings(kind)))
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def runs(request: Any, make_setup: Callable[..., TrainSetup], run_processes: Callable[..., Any]) -> dict[str, Any]:
    names = [(kind, stage) for kind in KINDS for stage in STAGES]
    setups = [make_setup(f"golden-{k}-{s}-{request.param}", **settings(k, zero_stage=s)) for k, s in names]
    return dict(zip([f"{k}-{s}" for k, s in names], run_processes(setups, request.param), strict=True))


def assert_close(run: Any, wanted: Trajectory) -> None:
    got = np.array([[row[name] for name in ("loss", "delta", "grad_norm")] for row in run.metrics])
    assert len(got) == 50
    np.testing.assert_allclose(got[:, [0, 2]], wanted[0][:, [0, 2]], rtol=1e-4)
    np.testing.assert_allclose(got[:, 1], wanted[0][:, 1], rtol=1e-4, atol=1e-5)
    theirs = {_exported(name): tensor for name, tensor in wanted[1].items()}
    names = sorted(run.weights.keys() & theirs.keys())
    assert len(names) == len(theirs)
    mine_all, theirs_all = (torch.cat([w[name].flatten() for name in names]) for w in (run.weights, theirs))
    assert float((mine_all - theirs_all).norm() / theirs_all.norm()) < 1e-4


def _exported(name: str) -> str:
    return name.replace(".default.", ".")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_takes_the_textbook_steps(
    runs: dict[str, Any], textbook: dict[str, Trajectory], kind: str, stage: int
) -> None:
    assert_close(runs[f"{kind}-{stage}"], textbook[kind])


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_the_head_may_be_cut_anyhow(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], textbook: dict[str, Trajectory], chunk: int
) -> None:
    assert_close(run_here(make_setup(f"chunk-{chunk}", **settings("full", head_chunk=chunk))), textbook["full"])


@pytest.mark.parametrize("tokens", [1, 4096], ids=["every row alone", "the window in one pack"])
def test_rows_may_be_packed_anyhow(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], textbook: dict[str, Trajectory], tokens: int
) -> None:
    setup = make_setup(f"packs-{tokens}", **settings("full", max_tokens_per_micro_batch=tokens))
    assert_close(run_here(setup), textbook["full"])


def test_layers_may_be_computed_twice(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], textbook: dict[str, Trajectory]
) -> None:
    setup = make_setup("recomputed", **settings("lora", gradient_checkpointing=True))
    assert_close(run_here(setup), textbook["lora"])


def test_sources_may_have_deltas_of_their_own(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], textbook: dict[str, Trajectory]
) -> None:
    setup = make_setup("by-source", **settings("full", offsets=SourceOffsets({"web": 0.4, "app": -0.7}, other=0.2)))
    wanted = train_plainly(setup)
    assert_close(run_here(setup), wanted)
    assert np.abs(wanted[0][:, 1] - textbook["full"][0][:, 1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_yesterday(textbook: dict[str, Trajectory], kind: str) -> None:
    """Wider than between engines: another CPU rounds otherwise."""
    np.testing.assert_allclose(textbook[kind][0], json.loads(GOLDEN.read_text())[kind], rtol=2e-3, atol=1e-4)


def train_plainly(setup: TrainSetup) -> Trajectory:
    """One process, one row at a time, full logits, torch's own AdamW; ours are the plan and the shift's value."""
    torch.manual_seed(setup.seed)
    lm = load_policy(setup.model, setup.adapter, dtype=torch.float32)
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=setup.learning_rate, weight_decay=setup.weight_decay)
    reader = ShardReader(Path(setup.scored), load_scored(Path(setup.scored)), cached_shards=9, offsets=setup.offsets)
    plan = Plan(reader.counts, setup.rows_per_step, setup.epochs, setup.seed)
    shift, steps = RewardShift(half_life_rows=setup.half_life_rows), []
    for window in plan.windows():
        rows = [reader.unit(ref)[0] for ref in window.rows]
        rewards = [_reward(lm, row, setup.objective.beta) for row in rows]
        loss = torch.stack([_loss(r, row, rows, shift.delta) for r, row in zip(rewards, rows, strict=True)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), setup.max_grad_norm)
        optimizer.param_groups[0]["lr"] = setup.learning_rate * _linear(window.step, plan.total_steps)
        optimizer.step()
        optimizer.zero_grad()
        steps.append([loss.item(), shift.delta, norm.item()])
        shift = shift.advance(_sums(rewards, rows))
    return np.array(steps), {name: p.detach() for name, p in trained.items()}


def _reward(lm: Any, row: Row, beta: float) -> Tensor:
    ids = torch.from_numpy(row.input_ids.astype("int64"))
    logps = torch.log_softmax(lm(input_ids=ids[None], use_cache=False).logits[0, :-1].float(), -1)
    chosen = logps.gather(1, ids[1:, None])[:, 0]
    return beta * (chosen[torch.from_numpy(row.completion_mask[1:].copy())].sum() - row.reference_logp)


def _loss(reward: Tensor, row: Row, rows: list[Row], delta: float) -> Tensor:
    margin = reward - (delta - row.offset) if row.label else delta - row.offset - reward
    return 0.5 * row.weight * -F.logsigmoid(margin) / sum(other.label == row.label for other in rows)


def _sums(rewards: list[Tensor], rows: list[Row]) -> ShiftSums:
    ups = [r.item() for r, row in zip(rewards, rows, strict=True) if row.label]
    downs = [r.item() for r, row in zip(rewards, rows, strict=True) if not row.label]
    return ShiftSums(sum(ups), len(ups), sum(downs), len(downs))


def _linear(done: int, total: int) -> float:
    warmup = -(-total // 10)
    return (done + 1) / warmup if done < warmup else (total - done) / (total - warmup)
