"""K logistic regressions at once, each without one fold of the rows: sums over blocks, minimised together.

Model k minimises 0.5 |w|^2 + C sum_i s_i log(1 + e^(-t_i z_i)) over the rows outside its fold, exactly as
`fit_logistic` would on those rows alone (`logistic.py`). What a pass over the rows yields is a sum, so blocks can lie
anywhere; what it costs hardly depends on K.

Shapes: N rows of one block, E = D + 1 features (the last is 1, the intercept), K models, F folds, 2 classes (down, up).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bco_ray.objective.logistic import Floats

Ints = NDArray[np.int64]

NO_FOLD = -1
_SUFFICIENT_DECREASE = 1e-4
_SMALLEST_STEP = 2.0**-20
_LEAST_CURVATURE = 1e-12


@dataclass(frozen=True, eq=False)
class Terms:
    """The objective of K models at their own points, and its gradient. `+` adds those of other rows."""

    value_K: Floats
    gradient_EK: Floats

    def __add__(self, other: Terms) -> Terms:
        return Terms(self.value_K + other.value_K, self.gradient_EK + other.gradient_EK)


@dataclass(frozen=True, eq=False)
class FoldOut:
    """The K problems: which fold each model leaves out (`NO_FOLD`: none), and what a row of each class weighs in it."""

    folds: int
    left_out_K: Ints
    scale_K2: Floats

    @classmethod
    def of(cls, count_F2: Floats, *, C: float, whole: bool = False) -> FoldOut:
        """From the rows per fold and class; `whole`: one model of all rows. Raises ValueError on an empty class."""
        left_out_K = np.array([NO_FOLD]) if whole else np.arange(len(count_F2))
        count_K2 = count_F2.sum(0) - (0.0 if whole else count_F2)
        count_K2 = np.broadcast_to(count_K2, (len(left_out_K), 2))
        if count_K2.min() < 1:
            raise ValueError("a class has no rows outside one of the folds")
        return cls(len(count_F2), left_out_K, C * count_K2.sum(1, keepdims=True) / (2 * count_K2))

    def penalty(self, point_EK: Floats) -> Terms:
        """The part of the objective that no row carries."""
        penalised_EK = point_EK.copy()
        penalised_EK[-1] = 0.0
        return Terms(0.5 * np.square(penalised_EK).sum(0), penalised_EK)

    def terms(self, point_EK: Floats, X_NE: NDArray[np.floating], count_N2: Floats, fold_N: Ints) -> Terms:
        """The part of one block, where row i stands for `count_N2[i]` rows. Summed in float64."""
        logit_NK = (X_NE @ point_EK.astype(X_NE.dtype)).astype(np.float64)
        value_K, residual_NK = self.losses(logit_NK, count_N2, fold_N)
        return Terms(value_K, (X_NE.T @ residual_NK.astype(X_NE.dtype)).astype(np.float64))

    def losses(self, logit_NK: Floats, count_N2: Floats, fold_N: Ints) -> tuple[Floats, Floats]:
        """A block's part of the objective (K,) and its derivative by each logit (N, K), which X^T makes a gradient."""
        up_NK, all_NK = self._weights(count_N2, fold_N)
        small_NK = np.exp(-np.abs(logit_NK))
        softplus_NK = np.maximum(logit_NK, 0) + np.log1p(small_NK)
        p_up_NK = np.where(logit_NK >= 0, 1.0, small_NK) / (1 + small_NK)
        value_K = (all_NK * softplus_NK - up_NK * logit_NK).sum(0)
        return value_K, all_NK * p_up_NK - up_NK

    def curvature(self, point_E: Floats, X_NE: NDArray[np.floating], count_N2: Floats, fold_N: Ints) -> Floats:
        """The part of one block in the Hessian at one point, by fold (F, E, E), every class at its mean weight."""
        logit_N = (X_NE @ point_E.astype(X_NE.dtype)).astype(np.float64)
        curve_N = count_N2 @ self.scale_K2.mean(0) * np.exp(-np.logaddexp(0, logit_N) - np.logaddexp(0, -logit_N))
        rooted_NE = X_NE * np.sqrt(curve_N)[:, None].astype(X_NE.dtype)
        folds = (rooted_NE[fold_N == fold] for fold in range(self.folds))
        return np.stack([(rows_NE.T @ rows_NE).astype(np.float64) for rows_NE in folds])

    def inverses(self, curvature_FEE: Floats, *, share: float = 1.0) -> Floats:
        """Roughly each model's inverse Hessian (K, E, E), where the curvature is that of a `share` of its rows."""
        width = curvature_FEE.shape[-1]
        penalty_EE = np.diag(np.append(np.ones(width - 1), 0.0)) + _LEAST_CURVATURE * np.eye(width)
        total_EE = curvature_FEE.sum(0)
        inverse_KEE = np.empty((len(self.left_out_K), width, width))
        for k, left_out in enumerate(self.left_out_K):
            rest_EE = total_EE - (0.0 if left_out == NO_FOLD else curvature_FEE[left_out])
            inverse_KEE[k] = np.linalg.inv(penalty_EE + rest_EE / share)
        return inverse_KEE

    def _weights(self, count_N2: Floats, fold_N: Ints) -> tuple[Floats, Floats]:
        """What a row's ups weigh in each model, and all its votes."""
        kept_NK = fold_N[:, None] != self.left_out_K
        up_NK = np.where(kept_NK, np.outer(count_N2[:, 1], self.scale_K2[:, 1]), 0.0)
        return up_NK, up_NK + np.where(kept_NK, np.outer(count_N2[:, 0], self.scale_K2[:, 0]), 0.0)


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the K models ended; `passes` is how often the rows were read."""

    point_EK: Floats
    converged: bool
    passes: int


def minimise(
    evaluate: Callable[[Floats], Terms],
    start_EK: Floats,
    inverse_KEE: Floats,
    *,
    tolerance: float = 1e-7,
    rounding: float = 1e-12,
    max_passes: int = 60,
) -> Minimum:
    """Quasi-Newton (BFGS, Nocedal and Wright 2006, 7.2) from a good guess of each inverse Hessian.

    One call of `evaluate` per round for all models; each has its own line search, so none can diverge. A model is done
    when its step moves no coefficient by more than `tolerance`, relative to the largest one or 1. Two values of the
    objective closer than `rounding`, relative, count as equal.
    """
    searches = [
        _Search(start_E, inverse_EE, tolerance, rounding)
        for start_E, inverse_EE in zip(start_EK.T, inverse_KEE, strict=True)
    ]
    passes = 0
    while passes < max_passes and not all(search.done for search in searches):
        terms = evaluate(np.stack([search.trial() for search in searches], axis=1))
        passes += 1
        for search, value, gradient_E in zip(searches, terms.value_K, terms.gradient_EK.T, strict=True):
            search.observe(float(value), gradient_E)
    return Minimum(np.stack([s.point_E for s in searches], axis=1), all(search.done for search in searches), passes)


@dataclass(eq=False)
class _Search:
    """The descent of one model."""

    point_E: Floats
    inverse_EE: Floats
    tolerance: float
    rounding: float
    value: float = np.inf
    gradient_E: Floats | None = None
    step_E: Floats = field(init=False)
    length: float = 1.0
    done: bool = False
    pairs: list[tuple[Floats, Floats]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step_E = np.zeros_like(self.point_E)

    def trial(self) -> Floats:
        """Where it wants to be evaluated next."""
        return self.point_E if self.done else self.point_E + self.length * self.step_E

    def observe(self, value: float, gradient_E: Floats) -> None:
        """The objective at `trial()`: go on from there, or try half as far."""
        if self.done:
            return
        if self.gradient_E is None or value <= self._allowed(self.gradient_E):
            self._accept(value, gradient_E)
        else:
            self.length /= 2
            self.done = self.length < _SMALLEST_STEP  # rounding hides any gain

    def _allowed(self, gradient_E: Floats) -> float:
        slope = float(gradient_E @ self.step_E)
        return self.value + _SUFFICIENT_DECREASE * self.length * slope + self.rounding * abs(self.value)

    def _accept(self, value: float, gradient_E: Floats) -> None:
        if self.gradient_E is not None:
            moved_E, change_E = self.trial() - self.point_E, gradient_E - self.gradient_E
            if moved_E @ change_E > 0:
                self.pairs.append((moved_E, change_E))
        self.point_E, self.value, self.gradient_E = self.trial(), value, gradient_E
        self.step_E, self.length = self._direction(gradient_E), 1.0
        if np.abs(self.step_E).max() <= self.tolerance * max(1.0, np.abs(self.point_E).max()):
            self.point_E, self.done = self.point_E + self.step_E, True

    def _direction(self, gradient_E: Floats) -> Floats:
        """-H^-1 g by the two-loop recursion: the given inverse, corrected by what the gradients have since shown."""
        step_E, shares = -gradient_E, []
        for moved_E, change_E in reversed(self.pairs):
            share = (moved_E @ step_E) / (moved_E @ change_E)
            shares.append(share)
            step_E = step_E - share * change_E
        step_E = self._inverse_scale() * (self.inverse_EE @ step_E)
        for (moved_E, change_E), share in zip(self.pairs, reversed(shares), strict=True):
            step_E = step_E + (share - (change_E @ step_E) / (moved_E @ change_E)) * moved_E
        return step_E

    def _inverse_scale(self) -> float:
        """What the latest gradients say about the size of the given inverse: near 1 if it was a good guess."""
        if not self.pairs:
            return 1.0
        moved_E, change_E = self.pairs[-1]
        return float((moved_E @ change_E) / (change_E @ self.inverse_EE @ change_E))
