"""Making labels say nothing of length: votes of a class that has too many of some lengths count less there.

People give thumbs-up to long answers for their length alone, or thumbs-down; a model that learns from such votes learns
the length. Weights q(b) / p_c(b) take both classes' lengths to the same distribution over bins b, the half-half mixture
q of the two (reweighing, Kamiran and Calders 2012, with the classes counting alike as they do in the loss).

Shapes: N rows, L lengths (0, 1, ... tokens), B bins, 2 classes (down, up). Float64 numpy, no torch: it runs in data
workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BINS = 20
MOST = 10.0
"""No vote counts more than so many times what it did, before weights are divided by their mean."""


@dataclass(frozen=True, eq=False)
class LengthSums:
    """Rows of each length and class, (2, L): how many, their weights and squared weights. `merge` adds."""

    count_2L: Floats
    weight_2L: Floats
    square_2L: Floats

    @classmethod
    def none(cls) -> LengthSums:
        """Of no rows."""
        return cls(*(np.zeros((2, 1)) for _ in range(3)))

    @classmethod
    def of(cls, length_N: ArrayLike, label_N: ArrayLike, weight_N: ArrayLike) -> LengthSums:
        """Lengths are whole numbers, 0 or more. Raises ValueError on a weight that is negative or NaN."""
        length, up, weight = np.asarray(length_N), np.asarray(label_N) == 1, np.asarray(weight_N, np.float64)
        if not np.all(weight >= 0):
            raise ValueError("a weight is negative or NaN")
        longest = int(length.max(initial=0))

        def sums(values: Floats) -> Floats:
            return np.stack([np.bincount(length[c], weights=values[c], minlength=longest + 1) for c in (~up, up)])

        return cls(sums(np.ones(len(length))), sums(weight), sums(np.square(weight)))

    def merge(self, other: LengthSums) -> LengthSums:
        longest = max(self.count_2L.shape[1], other.count_2L.shape[1])
        pairs = ((self.count_2L, other.count_2L), (self.weight_2L, other.weight_2L), (self.square_2L, other.square_2L))
        return LengthSums(*(_wide(mine, longest) + _wide(theirs, longest) for mine, theirs in pairs))

    @property
    def both(self) -> bool:
        """Whether there are votes of both kinds that weigh anything."""
        return bool((self.weight_2L.sum(axis=1) > 0).all())

    def auc(self) -> float:
        """The chance, by weight, that an up is longer than a down, equal lengths counting half. 0.5: unrelated."""
        down_L, up_L = self.weight_2L
        below_L = np.cumsum(down_L) - down_L / 2
        return float(up_L @ below_L / (up_L.sum() * down_L.sum()))

    def ess_fraction(self) -> tuple[float, float]:
        """Effective share of the rows of each class (down, up), (sum w)^2 / (n sum w^2)."""
        share_2 = self.weight_2L.sum(axis=1) ** 2 / (self.count_2L.sum(axis=1) * self.square_2L.sum(axis=1))
        return float(share_2[0]), float(share_2[1])

    def weighted(self, matching: LengthMatching) -> LengthSums:
        """The same rows with what `matching` makes of their weights."""
        lengths = np.arange(self.count_2L.shape[1])
        factor_2L = np.stack([matching.weights(lengths, np.full(len(lengths), label)) for label in (0, 1)])
        return LengthSums(self.count_2L, self.weight_2L * factor_2L, self.square_2L * np.square(factor_2L))


@dataclass(frozen=True)
class LengthMatching:
    """Bin b holds lengths above `edges[b - 1]` up to `edges[b]`. `factors[class][b]`: what the weights of votes there
    are multiplied by; those of a class add up to what they did. Where a class has no votes its factor is of no use.
    """

    edges: tuple[int, ...]
    factors: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def fit(cls, sums: LengthSums, bins: int = BINS) -> LengthMatching:
        """To rows of both classes. Bins hold the same share of the mixture as far as whole lengths allow it."""
        if not sums.both:
            raise ValueError("lengths are matched between thumbs-up and thumbs-down; one of them is missing")
        share_2L = sums.weight_2L / sums.weight_2L.sum(axis=1, keepdims=True)
        below_L = np.cumsum(share_2L.mean(axis=0))
        edges = np.unique(np.searchsorted(below_L, np.arange(1, bins) / bins))
        edges = edges[edges < np.flatnonzero(share_2L.any(axis=0))[-1]]
        bin_L = np.searchsorted(edges, np.arange(len(below_L)))
        share_2B = np.stack([np.bincount(bin_L, weights=row, minlength=len(edges) + 1) for row in share_2L])
        mixture_B = share_2B.mean(axis=0)
        bare_2B = np.minimum(np.divide(mixture_B, share_2B, out=np.ones_like(share_2B), where=share_2B > 0), MOST)
        factor_2B = bare_2B / (share_2B * bare_2B).sum(axis=1, keepdims=True)
        down, up = (tuple(row) for row in factor_2B.tolist())
        return cls(tuple(edges.tolist()), (down, up))

    def weights(self, length_N: ArrayLike, label_N: ArrayLike) -> Floats:
        """What each row's weight is multiplied by, (N,)."""
        place_N = np.searchsorted(np.array(self.edges, np.int64), np.asarray(length_N))
        return np.asarray(self.factors, np.float64)[np.asarray(label_N).astype(np.int64), place_N]


def _wide(sums_2L: Floats, longest: int) -> Floats:
    return np.pad(sums_2L, ((0, 0), (0, longest - sums_2L.shape[1])))
