"""AUC and calibration from counts in bins, against those from the rows themselves."""

import numpy as np
import pytest

from bco_ray.objective import auc, fit_logistic
from bco_ray.objective.histogram import ScoreHistogram


def scores(seed: int, rows: int = 20_000, shift: float = 1.0):  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    label_N = random.random(rows) < 0.3
    return random.normal(shift * label_N, 1.0), label_N


def histogram(score_N: np.ndarray, label_N: np.ndarray, parts: int = 1) -> ScoreHistogram:
    count_N2 = np.stack([~label_N, label_N], axis=1)
    total = ScoreHistogram.empty(-40.0, 40.0)  # 200 bins per sigma
    blocks = zip(np.array_split(score_N, parts), np.array_split(count_N2, parts), strict=True)
    for block_N, block_N2 in blocks:
        total = total.merge(ScoreHistogram.empty(-40.0, 40.0).add(block_N, block_N2))
    return total


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_auc_and_calibration_of_the_bins_are_those_of_the_rows(shift: float) -> None:
    score_N, label_N = scores(0, shift=shift)
    bins = histogram(score_N, label_N)
    exact = fit_logistic(lambda: [(score_N[:, None], label_N)], C=1e6)
    assert bins.auc() == pytest.approx(auc(score_N, label_N), abs=1e-4)
    assert bins.calibration().coef_D[0] == pytest.approx(exact.coef_D[0], abs=1e-3)
    assert bins.calibration().intercept == pytest.approx(exact.intercept, abs=1e-3)


def test_parts_add_up_to_the_whole() -> None:
    score_N, label_N = scores(1)
    assert (histogram(score_N, label_N, 7).count_B2 == histogram(score_N, label_N).count_B2).all()


def test_a_row_may_stand_for_several_votes_of_both_kinds() -> None:
    two = ScoreHistogram.empty(0.0, 1.0).add([0.2, 0.8], [[3, 1], [0, 2]])
    assert two.auc() == pytest.approx((2 * 3 + 0.5 * 1 * 3) / 9)


def test_scores_outside_count_at_the_ends() -> None:
    assert ScoreHistogram.empty(0.0, 1.0).add([-5.0, 9.0], [[1, 0], [0, 1]]).auc() == 1.0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        ScoreHistogram.empty(1.0, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        ScoreHistogram.empty(0.0, 1.0).add([np.nan], [[1, 0]])
    assert np.isnan(ScoreHistogram.empty(0.0, 1.0).auc())
