"""Is sigmoid(r - delta) the chance of a thumbs-up? With both classes weighing the same, as the objective has them.

p is that chance, of N rows; B bins hold equally many rows each, so that rewards that lie close together are told apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bco_ray.evaluation.bootstrap import Floats, Statistic
from bco_ray.evaluation.weighted import Labels, average_of, mean_of
from bco_ray.storage.evaluations import ReliabilityBin


def probability(rewards_N: Floats, delta_N: Floats | float) -> Floats:
    """sigmoid(r - delta), without overflow."""
    p_N: Floats = np.exp(-np.logaddexp(0.0, delta_N - np.asarray(rewards_N, np.float64)))
    return p_N


def brier_of(p_N: Floats, labels_N: Labels) -> Statistic:
    """Mean squared error of p; 0.25 for a p of one half throughout."""
    error_N = (p_N - labels_N) ** 2
    return average_of(mean_of(error_N, labels_N), mean_of(error_N, ~labels_N))


def ece_of(p_N: Floats, labels_N: Labels, bins: int) -> Statistic:
    """Expected calibration error: |predicted - observed| per bin, weighted by what is in it. The bins stay.

    Resampling makes it larger on average, so its interval leans upwards.
    """
    bin_N = _bin_of(p_N, bins)
    member_NB = np.eye(bins)[bin_N]
    off_NB = member_NB * p_N[:, None]

    def statistic(weights_RN: Floats) -> Floats:
        up_RN, down_RN = weights_RN * labels_N, weights_RN * ~labels_N
        share_up, share_down = up_RN.sum(1, keepdims=True), down_RN.sum(1, keepdims=True)
        gap_RB = (up_RN @ (off_NB - member_NB)) / share_up + (down_RN @ off_NB) / share_down
        value_R: Floats = np.abs(gap_RB).sum(1) / 2
        return value_R

    return statistic


def reliability(p_N: Floats, labels_N: Labels, bins: int) -> list[ReliabilityBin]:
    """What was predicted and what was observed per bin, empty ones left out; nothing where a class is absent."""
    ups, downs = int(labels_N.sum()), int((~labels_N).sum())
    if not ups or not downs:
        return []
    weight_N = np.where(labels_N, 1 / ups, 1 / downs)
    bin_N = _bin_of(p_N, bins)
    found = []
    for number in np.unique(bin_N):
        inside = bin_N == number
        weights, p, label = weight_N[inside], p_N[inside], labels_N[inside]
        found.append(
            ReliabilityBin(
                rows=int(inside.sum()),
                low=float(p.min()),
                high=float(p.max()),
                predicted=float(np.average(p, weights=weights)),
                observed=float(np.average(label, weights=weights)),
            )
        )
    return found


def _bin_of(p_N: Floats, bins: int) -> NDArray[np.int64]:
    """Equal values are in one bin, so some may be empty."""
    edges = np.quantile(p_N, np.arange(1, bins) / bins) if len(p_N) else np.empty(0)
    places: NDArray[np.int64] = np.searchsorted(edges, p_N, side="left").astype(np.int64)
    return places
