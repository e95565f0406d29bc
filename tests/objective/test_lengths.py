"""Length matching: what labels say of lengths goes, class totals stay, sums merge."""

from __future__ import annotations

import numpy as np
import pytest

from bco_ray.objective.density import auc
from bco_ray.objective.lengths import MOST, LengthMatching, LengthSums


def log(count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, labels that go with them, weights."""
    random = np.random.default_rng(seed)
    length = np.round(100 * np.exp(0.6 * random.standard_normal(count))).astype(np.int64)
    label = random.random(count) < 1 / (1 + np.exp(-1.5 * np.log(length / 100)))
    return length, label, random.uniform(0.5, 2.0, count)


def sums_equal(mine: LengthSums, theirs: LengthSums) -> None:
    for name in ("count_2L", "weight_2L", "square_2L"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-12)


def test_labels_say_no_more_of_lengths_and_classes_keep_their_weight() -> None:
    length, label, weight = log()
    sums = LengthSums.of(length, label, weight)
    matching = LengthMatching.fit(sums)
    after = weight * matching.weights(length, label)
    assert sums.auc() > 0.68
    assert sums.weighted(matching).auc() == pytest.approx(0.5, abs=0.01)
    for of in (label, ~label):
        assert after[of].sum() == pytest.approx(weight[of].sum())
    down, up = (np.bincount(np.searchsorted(matching.edges, length[of]), weights=after[of]) for of in (~label, label))
    np.testing.assert_allclose(down / down.sum(), up / up.sum(), rtol=1e-9)
    sums_equal(sums.weighted(matching), LengthSums.of(length, label, after))


def test_the_auc_is_that_of_the_rows_and_the_effective_share_too() -> None:
    length, label, _ = log(500)
    sums = LengthSums.of(length, label, np.ones(500))
    assert sums.auc() == pytest.approx(auc(length, label))
    assert sums.ess_fraction() == (1.0, 1.0)
    down, up = sums.weighted(LengthMatching.fit(sums)).ess_fraction()
    assert 0.3 < down < 1
    assert 0.3 < up < 1


def test_shards_of_any_size_add_up_to_the_log() -> None:
    length, label, weight = log()
    whole, parts = LengthSums.of(length, label, weight), LengthSums.none()
    for rows in np.split(np.arange(len(length)), [3, 3, 40, 1700]):
        parts = parts.merge(LengthSums.of(length[rows], label[rows], weight[rows]))
    sums_equal(parts, whole)
    assert LengthMatching.fit(parts).edges == LengthMatching.fit(whole).edges


def test_where_lengths_say_nothing_nothing_changes() -> None:
    length = np.tile([1, 5, 9], 200)
    matching = LengthMatching.fit(LengthSums.of(length, np.repeat([True, False], 300), np.ones(600)))
    np.testing.assert_allclose(matching.weights(length, np.repeat([True, False], 300)), 1.0)
    alike = LengthMatching.fit(LengthSums.of([7] * 4, [True, False, True, False], np.ones(4)))
    assert alike.factors == ((1.0,), (1.0,))


def test_a_rare_vote_is_not_blown_up() -> None:
    """One long thumbs-down among a thousand short ones, and thumbs-up all long."""
    length, label = np.array([1] * 999 + [50] * 1001), np.array([False] * 1000 + [True] * 1000)
    matching = LengthMatching.fit(LengthSums.of(length, label, np.ones(2000)))
    down = matching.weights(length, label)[~label]
    assert down.max() / down.min() < 2 * MOST * 1.01
    assert down.sum() == pytest.approx(1000)


def test_one_class_alone_cannot_be_matched() -> None:
    sums = LengthSums.of([1, 2], [True, True], [1.0, 1.0])
    assert not sums.both
    assert not LengthSums.none().both
    with pytest.raises(ValueError, match="one of them is missing"):
        LengthMatching.fit(sums)
    with pytest.raises(ValueError, match="negative or NaN"):
        LengthSums.of([1], [True], [np.nan])
