"""Statistics of weighted rows, for many sets of weights at once (see `bootstrap`): weights (R, N) give values (R,).

A row of weight 2 counts as two rows. Undefined (a class without weight, say): NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bco_ray.evaluation.bootstrap import Floats, Statistic

Labels = NDArray[np.bool_]


def mean_of(values_N: ArrayLike, of_N: Labels | None = None) -> Statistic:
    """The mean, over the rows picked by `of_N` alone."""
    values, picked = np.asarray(values_N, np.float64), _picked(values_N, of_N)
    picked_N, sums_N = picked.astype(np.float64), np.where(picked, values, 0.0)
    return lambda weights_RN: (weights_RN @ sums_N) / (weights_RN @ picked_N)


def auc_of(scores_N: ArrayLike, labels_N: Labels) -> Statistic:
    """The chance that an up scores above a down, ties counting half."""
    scores = np.asarray(scores_N, np.float64)
    order_N = np.argsort(scores, kind="stable")
    starts_G = np.flatnonzero(np.diff(scores[order_N], prepend=np.nan) != 0)  # of each score's run of equals
    up_N = labels_N[order_N].astype(np.float64)

    def statistic(weights_RN: Floats) -> Floats:
        if not len(starts_G):
            return np.full(len(weights_RN), np.nan)
        ordered_RN = weights_RN[:, order_N]
        up_RG = np.add.reduceat(ordered_RN * up_N, starts_G, axis=1)
        down_RG = np.add.reduceat(ordered_RN * (1 - up_N), starts_G, axis=1)
        below_RG = np.cumsum(down_RG, axis=1) - down_RG / 2
        value_R: Floats = (up_RG * below_RG).sum(1) / (up_RG.sum(1) * down_RG.sum(1))
        return value_R

    return statistic


def spearman_of(left_N: ArrayLike, right_N: ArrayLike) -> Statistic:
    """Rank correlation. Ranks are those among all rows, also in a resample."""
    left, right = (_standard(_ranks(np.asarray(values, np.float64))) for values in (left_N, right_N))
    moments_NK = np.stack([np.ones_like(left), left, right, left**2, right**2, left * right], axis=1)

    def statistic(weights_RN: Floats) -> Floats:
        total, a, b, aa, bb, ab = (weights_RN @ moments_NK).T
        spread_R = np.sqrt(np.maximum(aa - a**2 / total, 0) * np.maximum(bb - b**2 / total, 0))
        value_R: Floats = np.where(spread_R > 1e-9 * total, (ab - a * b / total) / spread_R, np.nan)
        return value_R

    return statistic


def difference_of(first: Statistic, second: Statistic) -> Statistic:
    """The first less the second."""
    return lambda weights_RN: first(weights_RN) - second(weights_RN)


def average_of(first: Statistic, second: Statistic) -> Statistic:
    """Half of both."""
    return lambda weights_RN: (first(weights_RN) + second(weights_RN)) / 2


def on_rows(statistic: Statistic, rows: NDArray[np.int64]) -> Statistic:
    """A statistic of some rows as one of all."""
    return lambda weights_RN: statistic(weights_RN[:, rows])


def _picked(values_N: ArrayLike, of_N: Labels | None) -> Labels:
    return np.ones(len(np.asarray(values_N)), np.bool_) if of_N is None else of_N


def _ranks(values_N: Floats) -> Floats:
    """From 1; equals share the mean of theirs."""
    _, place_N, ties = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(ties) - (ties - 1) / 2)[place_N]
    return ranks


def _standard(values_N: Floats) -> Floats:
    """Centred and scaled, so that the sums of squares lose no digits."""
    centred: Floats = values_N - values_N.mean() if len(values_N) else values_N
    spread = float(np.abs(centred).max(initial=0.0))
    return centred / spread if spread else centred
