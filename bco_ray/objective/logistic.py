"""Which prompts get thumbs-up: a logistic regression over blocks, in constant memory, stored as plain numbers.

Minimises 0.5 |w|^2 + C sum_i s_i log(1 + e^(-t_i (w.x_i + b))) with t = +-1 and s_i = N / (2 N_class): the objective of
scikit-learn's LogisticRegression(C=C, class_weight="balanced"), intercept not penalised, so that the odds are the
density ratio with no prior left in them (design/bco-spec.md 1.7).

Shapes: N rows of one block, D features, E = D + 1 (the intercept last). float64 numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Blocks = Callable[[], Iterable[tuple[ArrayLike, ArrayLike]]]
"""Called once per pass; each call yields the same blocks (X_ND, y_N), y bool or 0/1; or (X_ND, count_N2): a row that
stands for so many rows with label 0, so many with label 1."""

_SUFFICIENT_DECREASE = 1e-4
_SMALLEST_STEP = 2.0**-40
_ROUNDING = 1e-14
"""Relative: below this two values of the objective cannot be told apart."""


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """logit P(thumbs-up given x) = x . coef + intercept, with both classes equally frequent."""

    coef_D: Floats
    intercept: float

    def logits(self, X_ND: ArrayLike) -> Floats:
        return np.asarray(np.asarray(X_ND, dtype=np.float64) @ self.coef_D + self.intercept)

    def state_dict(self) -> dict[str, Any]:
        """Plain floats for JSON, exact to the bit."""
        return {"coef": self.coef_D.tolist(), "intercept": self.intercept}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LogisticModel:
        return cls(np.array(state["coef"], dtype=np.float64), float(state["intercept"]))


def fit_logistic(
    blocks: Blocks, *, C: float = 1.0, tolerance: float = 1e-9, max_iterations: int = 100
) -> LogisticModel:
    """Newton's method with a line search; one pass over the blocks per trial point, some 6 to 10 in all.

    Memory: one block and a D x D matrix. Done when a step moves no coefficient by more than `tolerance`, relative to
    the largest one or 1. Raises ValueError when a class is empty, a label is not 0 or 1, or a feature is not finite;
    RuntimeError after `max_iterations`.
    """
    count_by_class = _count(blocks)
    scale_by_class = C * count_by_class.sum() / (2 * count_by_class)
    here = _evaluate(blocks, None, scale_by_class)
    for _ in range(max_iterations):
        step_E = _newton_step(here)
        if np.abs(step_E).max() <= tolerance * max(1.0, np.abs(here.point_E).max()):
            return _model(here.point_E + step_E)
        there = _line_search(blocks, here, step_E, scale_by_class)
        if there is None:
            return _model(here.point_E)
        here = there
    raise RuntimeError(f"the logistic regression did not converge in {max_iterations} steps (C = {C})")


def mean_log_loss(model: LogisticModel, blocks: Blocks) -> float:
    """Log-loss per row with both classes counting half: what to compare on held-out rows when choosing C."""
    scale_by_class = 1 / (2 * _count(blocks))
    weighed = ((model.logits(X_ND), _counts(y_N) * scale_by_class) for X_ND, y_N in blocks())
    return float(sum(w_N2[:, 0] @ np.logaddexp(0, z_N) + w_N2[:, 1] @ np.logaddexp(0, -z_N) for z_N, w_N2 in weighed))


@dataclass(frozen=True, eq=False)
class _Point:
    """The objective and its first two derivatives at one place."""

    point_E: Floats
    value: float
    gradient_E: Floats
    hessian_EE: Floats


def _evaluate(blocks: Blocks, point_E: Floats | None, scale_by_class: Floats) -> _Point:
    """One pass. `point_E` None: at 0, with D taken from the first block."""
    here: _Point | None = None
    for X_ND, y_N in blocks():
        X_NE = _with_intercept(X_ND)
        here = _penalty(np.zeros(X_NE.shape[1]) if point_E is None else point_E) if here is None else here
        here = _add_block(here, X_NE, _counts(y_N) * scale_by_class)
    assert here is not None, "_count has seen rows"
    return here


def _penalty(point_E: Floats) -> _Point:
    penalised_E = np.ones_like(point_E)
    penalised_E[-1] = 0.0
    gradient_E = penalised_E * point_E
    return _Point(point_E, 0.5 * float(gradient_E @ point_E), gradient_E, np.diag(penalised_E))


def _add_block(here: _Point, X_NE: Floats, weight_N2: Floats) -> _Point:
    logit_N = X_NE @ here.point_E
    down_N, up_N = np.logaddexp(0, logit_N), np.logaddexp(0, -logit_N)
    gradient_E = X_NE.T @ (weight_N2[:, 0] * np.exp(-up_N) - weight_N2[:, 1] * np.exp(-down_N))
    hessian_EE = (X_NE * (weight_N2.sum(1) * np.exp(-up_N - down_N))[:, None]).T @ X_NE
    value = float(weight_N2[:, 0] @ down_N + weight_N2[:, 1] @ up_N)
    return _Point(here.point_E, here.value + value, here.gradient_E + gradient_E, here.hessian_EE + hessian_EE)


def _newton_step(here: _Point) -> Floats:
    """-H^-1 g. A trace of damping keeps H regular where rounding would not: the intercept has no penalty to do so."""
    hessian_EE = here.hessian_EE.copy()
    hessian_EE[-1, -1] = hessian_EE[-1, -1] * (1 + 1e-12) + 1e-300
    return -np.asarray(np.linalg.solve(hessian_EE, here.gradient_E), dtype=np.float64)


def _line_search(blocks: Blocks, here: _Point, step_E: Floats, scale_by_class: Floats) -> _Point | None:
    """The longest of the steps 1, 1/2, 1/4 ... that lowers the objective enough; None when rounding hides any gain."""
    slope = float(here.gradient_E @ step_E)
    length = 1.0
    while length >= _SMALLEST_STEP:
        there = _evaluate(blocks, here.point_E + length * step_E, scale_by_class)
        allowed = here.value + _SUFFICIENT_DECREASE * length * slope + _ROUNDING * abs(here.value)
        if there.value <= allowed:
            return there
        length /= 2
    return None


def _count(blocks: Blocks) -> Floats:
    """Rows with label 0 and with label 1, after looking at every row once."""
    count_by_class = np.zeros(2)
    for X_ND, y_N in blocks():
        count_by_class += _counts(y_N).sum(0)
        if not np.isfinite(np.asarray(X_ND, dtype=np.float64)).all():
            raise ValueError("a feature is NaN or infinite")
    if count_by_class.min() == 0:
        down, up = count_by_class.astype(int)
        raise ValueError(f"a classifier needs rows of both labels, got {up} thumbs-up and {down} thumbs-down")
    return count_by_class


def _with_intercept(X_ND: ArrayLike) -> Floats:
    X = np.asarray(X_ND, dtype=np.float64)
    return np.concatenate([X, np.ones((len(X), 1))], axis=1)


def _counts(y_N: ArrayLike) -> Floats:
    """(N, 2): rows with label 0 and with label 1 that a row stands for."""
    y = np.asarray(y_N)
    if y.ndim == 2:
        return y.astype(np.float64)
    if not np.isin(y, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    return np.stack([y == 0, y == 1], axis=1).astype(np.float64)


def _model(point_E: Floats) -> LogisticModel:
    return LogisticModel(point_E[:-1], float(point_E[-1]))
