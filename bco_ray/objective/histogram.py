"""Scores of any number of rows as counts in narrow bins: AUC, log-loss and calibration in constant memory.

All scores in a bin are taken to be its middle, and the two classes in it to be tied. With bins h wide and scores spread
by sigma, a calibration slope is off by some (h / sigma)^2 / 12 relative; the AUC only by pairs that share a bin. At 200
bins per sigma the tests hold the AUC to 1e-4 and the calibration to 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bco_ray.objective.logistic import LogisticModel, fit_logistic

Ints = NDArray[np.int64]

BINS = 2**14


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Rows per bin and class (down, up), (BINS, 2), over [low, high]; scores outside fall into the end bins."""

    low: float
    high: float
    count_B2: Ints

    @classmethod
    def empty(cls, low: float, high: float) -> ScoreHistogram:
        """Raises ValueError unless low < high."""
        if not low < high:
            raise ValueError(f"a histogram needs low < high, got {low} and {high}")
        return cls(low, high, np.zeros((BINS, 2), dtype=np.int64))

    def add(self, scores_N: ArrayLike, count_N2: ArrayLike) -> ScoreHistogram:
        """With these scores, each standing for so many rows of each class. Raises ValueError on NaN."""
        scores, counts = np.asarray(scores_N, dtype=np.float64), np.asarray(count_N2)
        if np.isnan(scores).any():
            raise ValueError("a score is NaN")
        place_N = np.clip((scores - self.low) / (self.high - self.low) * BINS, 0, BINS - 1).astype(np.int64)
        added = [np.bincount(place_N, weights=counts[:, label], minlength=BINS) for label in (0, 1)]
        return replace(self, count_B2=self.count_B2 + np.stack(added, axis=1).astype(np.int64))

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        return replace(self, count_B2=self.count_B2 + other.count_B2)

    def auc(self) -> float:
        """The chance that an up scores above a down, ties within a bin counting half. NaN if a class is empty."""
        down_B, up_B = self.count_B2.T.astype(np.float64)
        below_B = np.cumsum(down_B) - down_B / 2
        pairs = down_B.sum() * up_B.sum()
        return float(up_B @ below_B / pairs) if pairs else np.nan

    def calibration(self) -> LogisticModel:
        """The line that turns scores into log ratios of the classes' densities. Raises ValueError on an empty class."""
        middle_B = self.low + (np.arange(BINS) + 0.5) * (self.high - self.low) / BINS
        used_B = self.count_B2.any(axis=1)
        return fit_logistic(lambda: [(middle_B[used_B, None], self.count_B2[used_B])], C=1e6)
