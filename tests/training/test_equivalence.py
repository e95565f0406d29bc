"""The same 20 optimizer steps, computed in different ways, are the same steps (design: fp32, 1e-5 relative)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bco_ray.storage.scored import load_scored
from bco_ray.training.batches import Share, window_batches
from bco_ray.training.plan import Plan
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import ShardReader

TOLERANCE = 1e-5
ROUNDING = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0,
            "delta": 2e-6, "rewards/chosen": 2e-6, "rewards/rejected": 2e-6}  # fmt: skip
"""What float32 cannot know, absolute: a reward is beta times a difference of two log-probabilities near -80."""


def assert_same_run(got: Any, wanted: Any) -> None:
    assert len(got.metrics) == len(wanted.metrics) == 20
    for mine, theirs in zip(got.metrics, wanted.metrics, strict=True):
        for name, rounding in ROUNDING.items():
            expected = (
                theirs[name] if theirs[name] is None else pytest.approx(theirs[name], rel=TOLERANCE, abs=rounding)
            )
            assert mine[name] == expected, (theirs["step"], name)
        for name in ("count/chosen", "count/rejected", "tokens"):
            assert mine[name] == theirs[name]
    mine, theirs = torch.cat([w.flatten() for w in got.weights.values()]), None
    theirs = torch.cat([w.flatten() for w in wanted.weights.values()])
    assert float((mine - theirs).norm() / theirs.norm()) < TOLERANCE


@pytest.fixture(scope="module")
def reference(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> Any:
    """One process, plain torch, the whole window in one micro-batch."""
    return run_here(make_setup("reference"))


def test_the_policy_starts_as_the_reference(reference: Any) -> None:
    first = reference.metrics[0]
    assert first["delta"] == 0.0
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0


def test_many_small_micro_batches_equal_one_large(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], reference: Any
) -> None:
    assert_same_run(run_here(make_setup("small", max_tokens_per_micro_batch=1)), reference)


def test_windows_hit_the_awkward_cases(world: tuple[Path, Path]) -> None:
    """The equivalence below is worth something: some worker has unequal classes, some worker lacks one class."""
    manifest = load_scored(world[1])
    reader = ShardReader(world[1], manifest, cached_shards=3)
    plan = Plan(reader.counts, rows_per_step=6, epochs=1, seed=3)
    unequal = missing = 0
    for window in plan.windows():
        per_rank = []
        for rank in range(2):
            batches = window_batches(reader, window, Share(rank, workers=2, max_tokens=40)).batches
            labels = torch.cat([b.labels_B[b.valid_B] for b in batches])
            per_rank.append((int(labels.sum()), int((~labels).sum())))
        unequal += per_rank[0] != per_rank[1]
        missing += any(0 in counts for counts in per_rank)
    assert unequal
    assert missing


def test_two_workers_equal_one(two_workers: dict[str, Any], reference: Any) -> None:
    """ZeRO 2; the other stages are in test_golden.py."""
    assert_same_run(two_workers["zero2"], reference)


def test_an_adapter_learns_in_bfloat16_under_zero_2(two_workers: dict[str, Any]) -> None:
    run = two_workers["bf16-lora"]
    assert all(m["grad_norm"] is not None for m in run.metrics)
    assert run.metrics[-1]["rewards/margins"] > 0.05
    assert all("lora_" in name for name in run.weights)


def test_four_workers_equal_one(
    make_setup: Callable[..., TrainSetup], run_processes: Callable[..., Any], reference: Any
) -> None:
    setup = make_setup("four", max_tokens_per_micro_batch=40)
    assert_same_run(run_processes([setup], 4)[0], reference)


def test_zero_in_one_process_equals_plain_torch(
    make_setup: Callable[..., TrainSetup], run_processes: Callable[..., Any], reference: Any
) -> None:
    """1 x 8 micro-batches under DeepSpeed against 8 x 1 without."""
    setup = make_setup("alone-zero1", zero_stage=1, max_tokens_per_micro_batch=1)
    assert_same_run(run_processes([setup], 1)[0], reference)
