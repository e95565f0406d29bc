"""K models at once, each without one fold: what each would be if it were fitted alone."""

from functools import reduce

import numpy as np
import pytest

from bco_ray.objective import fit_logistic
from bco_ray.objective.foldout import FoldOut, Minimum, Terms, minimise

FOLDS = 3


def rows(seed: int, count: int = 400, width: int = 5):  # type: ignore[no-untyped-def]
    """Features with the 1 at the end, votes (down, up) per row, some with several or none, and folds."""
    random = np.random.default_rng(seed)
    X_NE = np.append(random.normal(size=(count, width)), np.ones((count, 1)), axis=1)
    lean_N = 1 / (1 + np.exp(-X_NE @ random.normal(size=width + 1)))
    votes_N = random.integers(0, 4, count)
    up_N = random.binomial(votes_N, lean_N)
    return X_NE, np.stack([votes_N - up_N, up_N], axis=1).astype(float), random.integers(0, FOLDS, count)


def counts(count_N2: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(fold_N, count_N2[:, c], minlength=FOLDS) for c in (0, 1)], axis=1)


def fit(seed: int, *, C: float = 1.0, blocks: int = 1, whole: bool = False, guess: float | None = None) -> Minimum:
    """`guess`: start from a multiple of the identity as the inverse Hessian, instead of the rows' own."""
    X_NE, count_N2, fold_N = rows(seed)
    problem = FoldOut.of(counts(count_N2, fold_N), C=C, whole=whole)
    parts = [np.array_split(x, blocks) for x in (X_NE, count_N2, fold_N)]
    models = len(problem.left_out_K)
    start_EK = np.zeros((X_NE.shape[1], models))
    inverse_KEE = problem.inverses(problem.curvature(start_EK[:, 0], X_NE, count_N2, fold_N))
    if guess is not None:
        inverse_KEE = np.stack([guess * np.eye(X_NE.shape[1])] * models)

    def evaluate(point_EK: np.ndarray) -> Terms:
        terms = (problem.terms(point_EK, *block) for block in zip(*parts, strict=True))
        return reduce(Terms.__add__, terms, problem.penalty(point_EK))

    return minimise(evaluate, start_EK, inverse_KEE, tolerance=1e-9)


def alone(seed: int, left_out: int, C: float) -> np.ndarray:
    """The same model from rows that are repeated and a fold that is not there."""
    X_NE, count_N2, fold_N = rows(seed)
    kept_N = fold_N != left_out
    X = np.concatenate([np.repeat(X_NE[kept_N], count_N2[kept_N, c].astype(int), axis=0) for c in (0, 1)])
    y = np.repeat([0, 1], count_N2[kept_N].sum(0).astype(int))
    model = fit_logistic(lambda: [(X[:, :-1], y)], C=C)
    return np.append(model.coef_D, model.intercept)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_each_model_is_the_one_fitted_without_its_fold(seed: int, C: float) -> None:
    found = fit(seed, C=C, blocks=4)
    assert found.converged
    for fold in range(FOLDS):
        assert found.point_EK[:, fold] == pytest.approx(alone(seed, fold, C), abs=1e-7)


def test_one_model_of_all_rows() -> None:
    assert fit(3, whole=True).point_EK[:, 0] == pytest.approx(alone(3, -1, 1.0), abs=1e-7)


@pytest.mark.parametrize("guess", [1e-5, 1e-2, 10.0])
def test_a_bad_guess_of_the_hessian_costs_passes_and_nothing_else(guess: float) -> None:
    good, bad = fit(4), fit(4, guess=guess)
    assert bad.converged
    assert bad.passes > good.passes
    assert bad.point_EK == pytest.approx(good.point_EK, abs=1e-4)


def test_a_good_guess_needs_few_passes() -> None:
    assert fit(5).passes <= 15


def test_too_few_passes_are_told() -> None:
    problem = FoldOut.of(np.ones((2, 2)), C=1.0)
    found = minimise(problem.penalty, np.ones((3, 2)), np.stack([np.eye(3) / 50] * 2), max_passes=2)
    assert (found.converged, found.passes) == (False, 2)


def test_a_class_with_all_its_rows_in_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows outside"):
        FoldOut.of(np.array([[3.0, 5.0], [2.0, 0.0]]), C=1.0)


def test_extreme_logits_stay_finite() -> None:
    X_NE, count_N2, fold_N = rows(6)
    problem = FoldOut.of(counts(count_N2, fold_N), C=1.0)
    far_EK = np.full((X_NE.shape[1], FOLDS), 1e4)
    terms = problem.terms(far_EK, X_NE, count_N2, fold_N)
    assert np.isfinite(terms.value_K).all()
    assert np.isfinite(terms.gradient_EK).all()
    assert np.isfinite(problem.curvature(far_EK[:, 0], X_NE, count_N2, fold_N)).all()
