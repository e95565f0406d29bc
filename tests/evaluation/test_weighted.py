"""Statistics of weighted rows are those of the rows repeated, and those of scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, roc_auc_score

from bco_ray.evaluation.bootstrap import Statistic
from bco_ray.evaluation.calibration import brier_of, ece_of, probability, reliability
from bco_ray.evaluation.weighted import auc_of, difference_of, mean_of, on_rows, spearman_of
from bco_ray.objective.density import auc

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=4, max_size=30)


def alone(statistic: Statistic, rows: int) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, rows)))[0])


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_a_row_of_weight_two_is_two_rows(rows: list[tuple[int, bool, int]]) -> None:
    scores_N, up_N, weights_N = (np.array(column) for column in zip(*rows, strict=True))
    repeated_N, repeated_up_N = np.repeat(scores_N, weights_N), np.repeat(up_N, weights_N)
    made: list[Callable[[Any, Any], Statistic]] = [
        auc_of, mean_of, lambda s, u: brier_of(probability(s, 0.3), u),
        lambda s, u: difference_of(mean_of(s, u), mean_of(s, ~u)),
    ]  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        for make in made:
            weighted = make(scores_N, up_N)(weights_N[None].astype(float))[0]
            assert weighted == pytest.approx(alone(make(repeated_N, repeated_up_N), len(repeated_N)), nan_ok=True)


def test_auc_is_everybody_elses() -> None:
    random = np.random.default_rng(0)
    scores_N, up_N = random.integers(0, 9, 300) / 3, random.random(300) < 0.3
    weights_N = random.integers(0, 4, 300).astype(float)
    assert alone(auc_of(scores_N, up_N), 300) == pytest.approx(auc(scores_N, up_N))
    found = auc_of(scores_N, up_N)(np.stack([weights_N, np.ones(300)]))
    assert found[0] == pytest.approx(roc_auc_score(up_N, scores_N, sample_weight=weights_N))
    assert found[1] == pytest.approx(roc_auc_score(up_N, scores_N))


def test_a_class_that_is_missing_leaves_auc_undefined() -> None:
    assert np.isnan(alone(auc_of(np.arange(3), np.ones(3, bool)), 3))
    assert np.isnan(alone(auc_of(np.empty(0), np.empty(0, bool)), 0))


def test_rank_correlation_is_scipys() -> None:
    random = np.random.default_rng(1)
    left_N = random.integers(0, 20, 200)
    right_N = left_N + random.integers(0, 30, 200)
    assert alone(spearman_of(left_N, right_N), 200) == pytest.approx(spearmanr(left_N, right_N).statistic)
    assert np.isnan(alone(spearman_of(np.zeros(5), np.arange(5)), 5))


def test_a_statistic_of_some_rows() -> None:
    assert alone(on_rows(mean_of([1.0, 2.0]), np.array([0, 3])), 4) == 1.5


def test_probability_does_not_overflow() -> None:
    assert probability(np.array([-1e4, 0.0, 1e4]), 0.0).tolist() == [0.0, 0.5, 1.0]


def test_brier_is_scikit_learns_with_both_classes_weighing_the_same() -> None:
    random = np.random.default_rng(2)
    rewards_N, up_N = random.normal(size=300), random.random(300) < 0.2
    p_N = probability(rewards_N, 0.1)
    balanced = np.where(up_N, 1 / up_N.sum(), 1 / (~up_N).sum())
    assert alone(brier_of(p_N, up_N), 300) == pytest.approx(brier_score_loss(up_N, p_N, sample_weight=balanced))


def test_what_is_calibrated_is_found_to_be_and_what_is_too_sure_is_not() -> None:
    random = np.random.default_rng(3)
    rewards_N = random.normal(size=100_000)
    up_N = random.random(100_000) < probability(rewards_N, 0.0)  # both classes as frequent
    honest, boastful = probability(rewards_N, 0.0), probability(3 * rewards_N, 0.0)
    assert alone(ece_of(honest, up_N, 10), 100_000) < 0.01
    assert alone(ece_of(boastful, up_N, 10), 100_000) > 0.1
    for found in reliability(honest, up_N, 10):
        assert found.rows == pytest.approx(10_000, abs=1)
        assert found.observed == pytest.approx(found.predicted, abs=0.02)


def test_ece_is_what_its_bins_say() -> None:
    random = np.random.default_rng(4)
    p_N, up_N = random.integers(0, 11, 200) / 10, random.random(200) < 0.3
    bins = reliability(p_N, up_N, 5)
    assert sum(b.rows for b in bins) == 200
    weight_N = np.where(up_N, 0.5 / up_N.sum(), 0.5 / (~up_N).sum())
    shares = [weight_N[(p_N >= b.low) & (p_N <= b.high)].sum() for b in bins]
    assert sum(shares) == pytest.approx(1.0)
    expected = sum(share * abs(b.predicted - b.observed) for share, b in zip(shares, bins, strict=True))
    assert alone(ece_of(p_N, up_N, 5), 200) == pytest.approx(expected)
    assert reliability(p_N, np.ones(200, bool), 5) == []
