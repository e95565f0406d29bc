"""Density ratios and their trust: spec section 5, property 16."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from bco_ray.objective import (
    WeightSums,
    auc,
    auc_standard_error,
    class_weights,
    density_ratio,
    density_ratio_from_logits,
    effective_sample_size,
    fit_logistic,
)

gentle = settings(derandomize=True, deadline=None, max_examples=40)
BARE = {"min_density_ratio": 0.0, "max_density_ratio": math.inf, "normalise": "none"}
logit_lists = st.lists(st.floats(-800, 800), min_size=1, max_size=50)


def test_the_fitted_ratio_tracks_that_of_two_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(1, 1, (6000, 1)), rng.normal(-1, 1, (2000, 1))])
    model = fit_logistic(lambda: [(X, np.arange(8000) < 6000)], C=100.0)
    x = np.linspace(-2, 2, 9)[:, None]
    ratio = density_ratio_from_logits(model.logits(x), n_chosen=6000, n_rejected=2000, balanced=True, **BARE)
    assert np.log(ratio) == pytest.approx(2 * x[:, 0], abs=0.25)


@gentle
@given(logit_lists)
def test_weights_grow_with_p_within_the_clamp_and_have_mean_one(logits: list[float]) -> None:
    counts = {"n_chosen": 3, "n_rejected": 5, "balanced": False}
    ordered = np.sort(logits)
    clamped = density_ratio_from_logits(ordered, **counts, normalise="none")
    assert (np.diff(clamped) >= 0).all()
    assert clamped.min() >= 0.5
    assert clamped.max() <= 10.0
    assert density_ratio_from_logits(ordered, **counts).mean() == pytest.approx(1.0)


@gentle
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=50), st.integers(1, 10**6), st.integers(1, 10**6))
def test_prior_correction_takes_the_class_counts_out(log_ratios: list[float], n_chosen: int, n_rejected: int) -> None:
    logits = np.array(log_ratios) + math.log(n_chosen / n_rejected)
    ours = density_ratio_from_logits(logits, n_chosen=n_chosen, n_rejected=n_rejected, balanced=False)
    assert ours == pytest.approx(density_ratio_from_logits(log_ratios, n_chosen=1, n_rejected=1, balanced=True))


def test_certain_probabilities_stay_finite() -> None:
    weights = density_ratio([0.0, 1.0], n_chosen=1, n_rejected=1, balanced=True, normalise="none")
    assert weights.tolist() == [0.5, 10.0]
    assert density_ratio([], n_chosen=1, n_rejected=1, balanced=True).size == 0


@pytest.mark.parametrize("bad", [[1.5], [-0.1], [math.nan]])
def test_what_is_no_probability_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        density_ratio(bad, n_chosen=1, n_rejected=1, balanced=True)


def test_wrong_arguments_are_refused() -> None:
    ratio = functools.partial(density_ratio_from_logits, n_chosen=1, n_rejected=1, balanced=True)
    with pytest.raises(ValueError, match="NaN"):
        ratio([math.nan])
    with pytest.raises(ValueError, match="min <= max"):
        ratio([0.0], min_density_ratio=11)
    with pytest.raises(ValueError, match="both classes"):
        ratio([0.0], n_chosen=0, balanced=False)


@gentle
@given(st.integers(0, 1000), st.integers(1, 6))
def test_weight_sums_of_blocks_are_those_of_the_whole(seed: int, blocks: int) -> None:
    ratio = np.random.default_rng(seed).lognormal(0, 2, 40)
    whole = WeightSums.of(ratio, low=0.5, high=10.0)
    parts = [WeightSums.of(block, low=0.5, high=10.0) for block in np.array_split(ratio, blocks)]
    merged = functools.reduce(WeightSums.merge, parts, WeightSums())
    assert (merged.count, merged.clamped_low, merged.clamped_high) == (40, (ratio < 0.5).sum(), (ratio > 10).sum())
    assert merged.histogram == whole.histogram
    assert [merged.mean, merged.ess_fraction] == pytest.approx([whole.mean, whole.ess_fraction], rel=1e-12)
    assert [merged.least, merged.greatest] == [whole.least, whole.greatest]


def test_a_weight_may_stand_for_several_rows_or_none() -> None:
    ratio = np.random.default_rng(3).lognormal(0, 2, 40)
    times = np.random.default_rng(4).integers(0, 3, 40)
    counted = WeightSums.of(ratio, low=0.5, high=10.0, count_N=times)
    repeated = WeightSums.of(np.repeat(ratio, times), low=0.5, high=10.0)
    assert counted.histogram == repeated.histogram
    assert (counted.count, counted.clamped_low, counted.clamped_high, counted.least) == (
        repeated.count, repeated.clamped_low, repeated.clamped_high, repeated.least,
    )  # fmt: skip
    assert [counted.mean, counted.ess_fraction] == pytest.approx([repeated.mean, repeated.ess_fraction])


@gentle
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_right_within_a_bin(seed: int, q: float) -> None:
    weights = np.random.default_rng(seed).lognormal(0, 1, 4001)
    ours = WeightSums.of(weights).quantile(q)
    assert ours == pytest.approx(float(np.quantile(weights, q, method="inverted_cdf")), rel=0.05)


def test_weight_sums_at_the_edges() -> None:
    none = WeightSums()
    assert math.isnan(none.mean)
    assert math.isnan(none.ess_fraction)
    assert math.isnan(none.quantile(0.5))
    assert effective_sample_size([]) == 0
    assert effective_sample_size([3.0, 3.0, 3.0]) == pytest.approx(3)
    same = WeightSums.of([10.0, 10.0, 0.0, 1e9], high=10.0)
    assert [same.quantile(0), same.quantile(1)] == [0.0, 10.0]
    with pytest.raises(ValueError, match="negative or NaN"):
        WeightSums.of([math.nan])
    with pytest.raises(ValueError, match="quantile"):
        same.quantile(2)


def test_class_weights_carry_half_each_until_capped() -> None:
    weights = class_weights(300, 100)
    assert 300 * weights.chosen == pytest.approx(100 * weights.rejected)
    assert not weights.capped
    assert class_weights(10, 990) == (20.0, pytest.approx(1000 / 1980), True)
    with pytest.raises(ValueError, match="0 thumbs-down"):
        class_weights(5, 0)


@gentle
@given(st.integers(0, 1000))
def test_auc_counts_ties_half(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, 60)])
    scores = np.round(rng.normal(labels, 1), 1)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auc(np.zeros(62), labels == 1) == 0.5


def test_auc_needs_both_labels_and_numbers() -> None:
    with pytest.raises(ValueError, match="both labels"):
        auc([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="no NaN"):
        auc([1.0, math.nan], [1, 0])


def test_auc_standard_error_is_the_spread_seen() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [40, 80])
    seen = [auc(rng.normal(0.8 * labels, 1), labels) for _ in range(1500)]
    assert auc_standard_error(float(np.mean(seen)), 40, 80) == pytest.approx(np.std(seen), rel=0.1)
    assert auc_standard_error(0.5, 40, 80) == pytest.approx(math.sqrt(121 / (12 * 40 * 80)))
    assert auc_standard_error(1.0, 1, 1) == 0
