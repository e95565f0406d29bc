"""Matching the thumbs-down prompts to the thumbs-up prompts: density-ratio weights, and how far to trust them.

Shapes: N rows. All float64 numpy, no torch: it runs in data workers. Source: design/bco-spec.md 1.6 and 1.7
(paper v1; the prior correction and the normalisation are ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BINS_PER_DECADE = 50
_DECADES = 4
_BINS = 2 * _DECADES * _BINS_PER_DECADE
"""Weights from 1e-4 to 1e4 in bins 4.7 % wide; what lies outside falls into the end bins."""


def density_ratio(
    p_up_N: ArrayLike,
    *,
    n_chosen: int,
    n_rejected: int,
    balanced: bool,
    min_density_ratio: float = 0.5,
    max_density_ratio: float = 10.0,
    normalise: Literal["mean", "none"] = "mean",
) -> Floats:
    """`density_ratio_from_logits` for probabilities that a prompt is from the thumbs-up set.

    Prefer the logits where they exist: a probability that was rounded to 1 has lost its ratio.
    Raises ValueError on a probability outside [0, 1].
    """
    p_up = np.asarray(p_up_N, dtype=np.float64)
    if not np.all((p_up >= 0) & (p_up <= 1)):
        raise ValueError("a probability of being thumbs-up lies outside [0, 1]")
    with np.errstate(divide="ignore"):
        logits_N = np.log(p_up) - np.log1p(-p_up)
    return density_ratio_from_logits(
        logits_N,
        n_chosen=n_chosen,
        n_rejected=n_rejected,
        balanced=balanced,
        min_density_ratio=min_density_ratio,
        max_density_ratio=max_density_ratio,
        normalise=normalise,
    )


def density_ratio_from_logits(
    logits_N: ArrayLike,
    *,
    n_chosen: int,
    n_rejected: int,
    balanced: bool,
    min_density_ratio: float = 0.5,
    max_density_ratio: float = 10.0,
    normalise: Literal["mean", "none"] = "mean",
) -> Floats:
    """p+(x) / p-(x) of thumbs-down prompts: odds (n_rejected / n_chosen) e^logit, clamped, divided by their mean.

    `balanced`: the classifier was fitted with equal class weight, so its odds need no prior correction; otherwise
    the counts are those it was fitted on. `normalise="none"` leaves the mean alone: for parity with TRL, and for
    blocks of a larger set whose mean comes from merged `WeightSums`. Bounds 0 and inf give the bare ratio.
    Raises ValueError on NaN, on an empty class when unbalanced, on bounds out of order.
    """
    logits = np.asarray(logits_N, dtype=np.float64)
    if np.isnan(logits).any():
        raise ValueError("a prompt's logit is NaN")
    if not 0 <= min_density_ratio <= max_density_ratio:
        raise ValueError(f"need 0 <= min <= max, got bounds {min_density_ratio} and {max_density_ratio}")
    with np.errstate(over="ignore"):
        ratio_N = np.exp(logits + _log_prior_correction(n_chosen, n_rejected, balanced))
    clamped_N = np.clip(ratio_N, min_density_ratio, max_density_ratio)
    return clamped_N / clamped_N.mean() if normalise == "mean" and clamped_N.size else clamped_N


def mixture_weights(ratio_N: ArrayLike, *, chosen: bool) -> Floats:
    """Weights that move one class onto the half-half mixture of both prompt distributions, given rho = p+ / p-.

    (1 + rho) / 2 for thumbs-down rows, (1 + 1/rho) / 2 for thumbs-up rows: never below 0.5.
    """
    ratio = np.asarray(ratio_N, dtype=np.float64)
    return np.asarray((1 + (1 / ratio if chosen else ratio)) / 2)


def effective_sample_size(weights_N: ArrayLike) -> float:
    """(sum w)^2 / sum w^2: as many equally weighted rows would be as informative. 0 of none."""
    return WeightSums.of(weights_N).effective_sample_size


@dataclass(frozen=True)
class WeightSums:
    """What many blocks of weights say together: sums that merge, means and quantiles at the end. Plain numbers."""

    count: int = 0
    total: float = 0.0
    square_total: float = 0.0
    clamped_low: int = 0
    clamped_high: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    histogram: tuple[int, ...] = (0,) * _BINS

    @classmethod
    def of(
        cls, ratio_N: ArrayLike, *, low: float = 0.0, high: float = math.inf, count_N: ArrayLike | None = None
    ) -> WeightSums:
        """Sums over the ratios clamped to [low, high], and how many lay outside. Raises ValueError on NaN or < 0.

        `count_N`: each ratio stands for so many rows, a whole number, 0 for none.
        """
        ratio = np.asarray(ratio_N, dtype=np.float64).ravel()
        count = np.ones(ratio.size) if count_N is None else np.asarray(count_N, dtype=np.float64).ravel()
        ratio, count = ratio[count > 0], count[count > 0]
        if not np.all(ratio >= 0):
            raise ValueError("a weight is negative or NaN")
        weights = np.clip(ratio, low, high)
        return cls(
            count=int(count.sum()),
            total=float((count * weights).sum()),
            square_total=float((count * np.square(weights)).sum()),
            clamped_low=int(count[ratio < low].sum()),
            clamped_high=int(count[ratio > high].sum()),
            least=float(weights.min(initial=math.inf)),
            greatest=float(weights.max(initial=-math.inf)),
            histogram=tuple(np.bincount(_bin_of(weights), weights=count, minlength=_BINS).astype(int).tolist()),
        )

    def merge(self, other: WeightSums) -> WeightSums:
        return WeightSums(
            count=self.count + other.count,
            total=self.total + other.total,
            square_total=self.square_total + other.square_total,
            clamped_low=self.clamped_low + other.clamped_low,
            clamped_high=self.clamped_high + other.clamped_high,
            least=min(self.least, other.least),
            greatest=max(self.greatest, other.greatest),
            histogram=tuple(a + b for a, b in zip(self.histogram, other.histogram, strict=True)),
        )

    @property
    def mean(self) -> float:
        """NaN of none."""
        return self.total / self.count if self.count else math.nan

    @property
    def effective_sample_size(self) -> float:
        return self.total**2 / self.square_total if self.square_total else 0.0

    @property
    def ess_fraction(self) -> float:
        """Effective sample size / count, between 0 and 1; NaN of none."""
        return self.effective_sample_size / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The weight below which a share q lies, within a bin's width (4.7 %), exact at both ends. NaN of none."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile's share must lie in [0, 1], got {q}")
        if not self.count:
            return math.nan
        below = np.cumsum(self.histogram)
        place = int(np.searchsorted(below, q * self.count))
        inside = (q * self.count - (below[place] - self.histogram[place])) / max(self.histogram[place], 1)
        low, high = self._edges(place)
        return float(low + inside * (high - low))

    def _edges(self, place: int) -> tuple[float, float]:
        """Where a bin begins and ends, the weights' own extremes taken into account."""
        low, high = (10.0 ** (edge / _BINS_PER_DECADE - _DECADES) for edge in (place, place + 1))
        low = self.least if place == 0 else max(low, self.least)
        high = self.greatest if place == _BINS - 1 else min(high, self.greatest)
        return low, high


class ClassWeights(NamedTuple):
    """A static weight for every row of a class; mean 1 over the data set unless `capped`."""

    chosen: float
    rejected: float
    capped: bool

    @property
    def minority_repeats(self) -> float:
        """How often a minority row counts for each time a majority row does."""
        return max(self.chosen, self.rejected) / min(self.chosen, self.rejected)


def class_weights(n_chosen: int, n_rejected: int, cap: float = 20.0) -> ClassWeights:
    """N / (2 n_class), so that each class carries half; cut at `cap` (inf: never), which the caller reports.

    Raises ValueError when a class is empty.
    """
    if min(n_chosen, n_rejected) < 1:
        raise ValueError(f"both classes need rows, got {n_chosen} thumbs-up and {n_rejected} thumbs-down")
    half = (n_chosen + n_rejected) / 2
    chosen, rejected = half / n_chosen, half / n_rejected
    return ClassWeights(min(chosen, cap), min(rejected, cap), capped=max(chosen, rejected) > cap)


def auc(scores_N: ArrayLike, labels_N: ArrayLike) -> float:
    """The chance that a row with label 1 scores above one with label 0, ties counting half.

    Raises ValueError when a class is empty or a score is NaN.
    """
    scores, chosen = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N) == 1
    n_chosen, n_rejected = int(chosen.sum()), int((~chosen).sum())
    if min(n_chosen, n_rejected) < 1 or np.isnan(scores).any():
        raise ValueError(f"AUC needs rows of both labels and no NaN, got {n_chosen} up and {n_rejected} down")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2
    return float((ranks[place][chosen].sum() - n_chosen * (n_chosen + 1) / 2) / (n_chosen * n_rejected))


def auc_standard_error(auc_value: float, n_chosen: int, n_rejected: int) -> float:
    """Hanley and McNeil 1982 from the AUC and the counts; at 0.5 the exact error under equal distributions."""
    square = auc_value**2
    variance = auc_value * (1 - auc_value)
    variance += (n_chosen - 1) * (auc_value / (2 - auc_value) - square)
    variance += (n_rejected - 1) * (2 * square / (1 + auc_value) - square)
    return math.sqrt(max(variance, 0.0) / (n_chosen * n_rejected))


def _log_prior_correction(n_chosen: int, n_rejected: int, balanced: bool) -> float:
    if balanced:
        return 0.0
    if min(n_chosen, n_rejected) < 1:
        raise ValueError(f"both classes need rows, got {n_chosen} thumbs-up and {n_rejected} thumbs-down")
    return math.log(n_rejected) - math.log(n_chosen)


def _bin_of(weights: Floats) -> NDArray[np.int64]:
    with np.errstate(divide="ignore"):
        place = (np.log10(weights) + _DECADES) * _BINS_PER_DECADE
    return np.asarray(np.clip(np.floor(place), 0, _BINS - 1), dtype=np.int64)
