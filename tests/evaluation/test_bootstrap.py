"""Resampling by prompt: the intervals cover what they say, and voting twice makes nobody surer."""

from __future__ import annotations

import numpy as np
import pytest

from bco_ray.evaluation import bootstrap
from bco_ray.evaluation.bootstrap import Drawn, Resamples, draw
from bco_ray.evaluation.weighted import mean_of


def test_every_draw_takes_as_many_clusters_as_there_are_and_whole_ones() -> None:
    clusters_N = np.array([7, 7, 3, 9, 9, 9])
    weights_RN = np.concatenate(list(Resamples(clusters_N, count=50, seed=1)))
    assert weights_RN.shape == (50, 6)
    assert (weights_RN[:, 0] == weights_RN[:, 1]).all()
    assert (weights_RN[:, [0, 2, 3]].sum(1) == 3).all()
    assert weights_RN[:, [0, 2, 3]].mean() == pytest.approx(1.0)


def test_the_size_of_a_piece_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters_N = np.arange(40) % 17
    whole = np.concatenate(list(Resamples(clusters_N, count=30, seed=5)))
    monkeypatch.setattr(bootstrap, "AT_ONCE", 3 * 40)
    pieces = list(Resamples(clusters_N, count=30, seed=5))
    assert len(pieces) == 10
    assert np.array_equal(whole, np.concatenate(pieces))


def test_a_mean_of_independent_rows_has_the_textbook_error() -> None:
    values_N = np.random.default_rng(0).normal(size=400)
    drawn = draw({"mean": mean_of(values_N)}, Resamples(np.arange(400), count=4000, seed=0), 400)["mean"]
    assert drawn.value == pytest.approx(values_N.mean())
    assert drawn.draws_KR.std() == pytest.approx(values_N.std() / 20, rel=0.05)


def test_intervals_over_clusters_cover_and_those_over_rows_do_not() -> None:
    """300 logs of 40 prompts with 10 votes each, which agree: the truth is 0."""
    random, covered = np.random.default_rng(0), np.zeros(2)
    for seed in range(300):
        values_N = (random.normal(size=40)[:, None] + 0.3 * random.normal(size=(40, 10))).ravel()
        for place, clusters_N in enumerate((np.arange(400) // 10, np.arange(400))):
            drawn = draw({"m": mean_of(values_N)}, Resamples(clusters_N, count=200, seed=seed), 400)
            estimate = drawn["m"].estimate(0.95)
            assert estimate.low is not None
            assert estimate.high is not None
            covered[place] += estimate.low < 0 < estimate.high
    assert 0.90 < covered[0] / 300 < 0.98
    assert covered[1] / 300 < 0.6


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    random = np.random.default_rng(0)
    first_N = random.normal(size=200)
    second_N = first_N - 0.1 + 0.01 * random.normal(size=200)
    drawn = draw({"a": mean_of(first_N), "b": mean_of(second_N)}, Resamples(np.arange(200), count=500, seed=0), 200)
    estimate = (drawn["a"] - drawn["b"]).estimate(0.95)
    assert estimate.value == pytest.approx(0.1, abs=0.01)
    assert estimate.low is not None
    assert estimate.low > 0.09


def test_what_is_undefined_is_none() -> None:
    nothing = draw({"m": mean_of([])}, Resamples([], count=10, seed=0), 0)["m"].estimate(0.95)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)
    rarely = Drawn(1.0, np.array([[np.nan] * 6 + [1.0] * 4]))
    assert (rarely.estimate(0.95).value, rarely.estimate(0.95).low) == (1.0, None)
    often = Drawn(1.0, np.ones((1, 10)))
    assert often.estimate(0.95).low == 1.0
    assert often.beside(rarely).estimate(0.95).low is None
    assert (often.without_draws().estimate(0.95).value, often.without_draws().estimate(0.95).low) == (1.0, None)


def test_the_widest_of_several_ways_to_cluster() -> None:
    narrow, wide = (Drawn(0.0, np.linspace(-end, end, 101)[None]) for end in (1.0, 2.0))
    both = narrow.beside(wide).estimate(0.9)
    assert (both.low, both.high) == (wide.estimate(0.9).low, wide.estimate(0.9).high)
    assert both.high == pytest.approx(1.8)
