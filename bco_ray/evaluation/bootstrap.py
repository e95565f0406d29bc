"""Intervals by resampling whole clusters (all votes on a prompt, or of a user), many resamples at a time.

Shapes: N rows, C clusters, R resamples, K ways to cluster. A statistic takes how often each row was drawn, weights
(R, N), and gives (R,) values, NaN where it is undefined. All statistics of one pass see the same resamples, so a
difference of two is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bco_ray.storage.evaluations import Estimate

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

AT_ONCE = 1 << 22
"""Weights in memory at a time."""

FEWEST_DEFINED = 0.5
"""A statistic that is undefined in more than half of the resamples has no interval."""


@dataclass(frozen=True)
class Drawn:
    """A statistic of the rows as they are, and of each resample, in each way to cluster them."""

    value: float
    draws_KR: Floats

    def __sub__(self, other: Drawn) -> Drawn:
        """Paired: both were drawn in one pass."""
        return Drawn(self.value - other.value, self.draws_KR - other.draws_KR)

    def beside(self, other: Drawn) -> Drawn:
        """The same statistic, as drawn in these ways and in those."""
        return replace(self, draws_KR=np.concatenate([self.draws_KR, other.draws_KR]))

    def without_draws(self) -> Drawn:
        """Its value alone, where too little is behind it for an interval."""
        return replace(self, draws_KR=self.draws_KR[:, :0])

    def estimate(self, confidence: float) -> Estimate:
        """With the percentile interval (Efron 1979) of that confidence, from the lowest to the highest end of all ways
        to cluster; None for what is undefined.
        """
        ends = [_percentiles(draws_R, confidence) for draws_R in self.draws_KR]
        known = [each for each in ends if each is not None]
        if not np.isfinite(self.value) or not known or len(known) < len(ends):
            return Estimate(value=self.value if np.isfinite(self.value) else None, low=None, high=None)
        return Estimate(value=self.value, low=min(low for low, _ in known), high=max(high for _, high in known))


class Resamples:
    """`count` draws of C clusters out of C, with replacement; the same ones for the same seed and clusters."""

    def __init__(self, clusters_N: ArrayLike, *, count: int, seed: int) -> None:
        names_C, self._cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
        self.clusters = len(names_C)
        self.count = count
        self._seed = seed

    def __iter__(self) -> Iterator[Floats]:
        """Weights (some of R, N), in pieces that fit in memory."""
        random = np.random.default_rng(self._seed)
        rows = max(1, len(self._cluster_N))
        step = max(1, AT_ONCE // rows)
        for start in range(0, self.count, step):
            weights_RC = _counts(random, min(step, self.count - start), self.clusters)
            yield weights_RC[:, self._cluster_N]


def draw(statistics: Mapping[str, Statistic], resamples: Resamples, rows: int) -> dict[str, Drawn]:
    """Every statistic, by name, in one pass over the resamples of `rows` rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: float(statistic(np.ones((1, rows)))[0]) for name, statistic in statistics.items()}
        pieces: dict[str, list[Floats]] = {name: [] for name in statistics}
        for weights_RN in resamples if rows else ():
            for name, statistic in statistics.items():
                pieces[name].append(statistic(weights_RN))
    return {name: Drawn(values[name], np.concatenate([*pieces[name], np.empty(0)])[None]) for name in statistics}


def _percentiles(draws_R: Floats, confidence: float) -> tuple[float, float] | None:
    defined_R = draws_R[np.isfinite(draws_R)]
    if len(defined_R) < max(1, FEWEST_DEFINED * len(draws_R)):
        return None
    low, high = np.quantile(defined_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _counts(random: np.random.Generator, draws: int, clusters: int) -> Floats:
    """How often each cluster came, (draws, C): one count over all draws, each in a range of its own."""
    drawn_RC = random.integers(0, clusters, size=(draws, clusters))
    drawn_RC += np.arange(draws)[:, None] * clusters
    counted = np.bincount(drawn_RC.ravel(), minlength=draws * clusters)
    return counted.reshape(draws, clusters).astype(np.float64)
