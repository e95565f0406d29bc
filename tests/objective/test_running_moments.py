"""TRL's running.json as the start of a reward shift: its delta, a short memory, and nothing from a spoiled file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bco_ray.objective import RewardShift, ShiftSums
from bco_ray.objective.running_moments import shift_from_running_moments

MOMENTS: dict[str, Any] = {"count": 4096.0, "mean": -1.25, "std": 0.9, "var": 0.81}
WINDOW = ShiftSums(chosen_reward_sum=96.0, chosen_count=96.0, rejected_reward_sum=-64.0, rejected_count=32.0)


def written_by_trl(name: str) -> list[dict[str, Any]]:
    """The files TRL 1.13.0 wrote after each batch of a case, beside the delta it used."""
    vectors = json.loads((Path(__file__).parents[1] / "data" / "trl-vectors.json").read_text())["bco"]["cases"]
    return next(case["outputs"] for case in vectors if case["name"] == name)


@pytest.mark.parametrize("name", ["balanced batches in a row", "one unbalanced batch", "one row, then seven"])
def test_the_delta_is_the_one_trl_used_last(name: str) -> None:
    for step in written_by_trl(name):
        shift = shift_from_running_moments(json.loads(step["running_json"]), half_life_rows=512)
        assert shift.delta == pytest.approx(step["delta"], rel=1e-6)
        assert RewardShift.from_state(json.loads(json.dumps(shift.state_dict(), allow_nan=False))) == shift


def test_a_single_row_leaves_trl_an_infinite_std_which_nobody_needs() -> None:
    assert json.loads(written_by_trl("one row, then seven")[0]["running_json"])["std"] == math.inf


@pytest.mark.parametrize("half_life_rows", [0.0, 512.0, 100_000.0, math.inf])
def test_it_weighs_at_most_one_half_life_of_rows(half_life_rows: float) -> None:
    shift = shift_from_running_moments(MOMENTS, half_life_rows=half_life_rows)
    assert shift.delta == -1.25
    assert shift.sums.chosen_count == shift.sums.rejected_count == min(4096.0, half_life_rows) / 2
    assert shift.half_life_rows == half_life_rows
    assert shift.rows_seen == 0


def test_what_training_observes_pulls_the_class_means_apart_and_wins() -> None:
    shift = shift_from_running_moments(MOMENTS, half_life_rows=512)
    after_one = shift.advance(WINDOW)
    assert after_one.delta != shift.delta
    assert after_one.chosen_mean is not None
    assert after_one.rejected_mean is not None
    assert after_one.chosen_mean > -1.25 > after_one.rejected_mean
    for _ in range(60):
        shift = shift.advance(WINDOW)
    assert shift.delta == pytest.approx((1.0 - 2.0) / 2, abs=0.01)


@pytest.mark.parametrize(("rows", "left"), [(512, 0.39), (2048, 0.04)])
def test_a_wrong_start_is_soon_forgotten(rows: int, left: float) -> None:
    """What docs/from-trl.md says of it: rewards that are really 0, in steps of 128."""
    shift = shift_from_running_moments(MOMENTS, half_life_rows=512)
    for _ in range(rows // 128):
        shift = shift.advance(ShiftSums(chosen_count=64.0, rejected_count=64.0))
    assert shift.delta / MOMENTS["mean"] == pytest.approx(left, abs=0.005)


@pytest.mark.parametrize("count", [0, 0.0, 1e-24])
def test_of_no_rows_it_is_a_plain_start(count: float) -> None:
    fresh = {"count": count, "mean": 0, "std": 1, "var": 1}
    assert shift_from_running_moments(fresh, half_life_rows=256) == RewardShift(half_life_rows=256)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": math.nan},
        {"mean": math.inf},
        {"mean": "-1.25"},
        {"mean": None},
        {"mean": True},
        {"var": math.nan},
        {"var": -1.0},
        {"count": -1.0},
        {"count": math.inf},
        {"count": [1]},
        {"delta": 0.0},
    ],
    ids=str,
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="running.json"):
        shift_from_running_moments({**MOMENTS, **change}, half_life_rows=512)


@pytest.mark.parametrize("missing", sorted(MOMENTS))
def test_a_missing_key_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="running.json"):
        shift_from_running_moments({k: v for k, v in MOMENTS.items() if k != missing}, half_life_rows=512)


@pytest.mark.parametrize("state", [None, [], "mean", {}])
def test_another_file_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="running.json"):
        shift_from_running_moments(state, half_life_rows=512)


@pytest.mark.parametrize("half_life_rows", [-1.0, math.nan])
def test_so_is_a_half_life_that_is_none(half_life_rows: float) -> None:
    with pytest.raises(ValueError, match="half_life_rows"):
        shift_from_running_moments(MOMENTS, half_life_rows=half_life_rows)
