"""The classifier over blocks, against scikit-learn's."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from bco_ray.objective import LogisticModel, fit_logistic, mean_log_loss
from bco_ray.objective.logistic import Blocks

gentle = settings(derandomize=True, deadline=None, max_examples=30)


def data(
    seed: int, rows: int = 200, features: int = 6, up: float = 0.3
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1], (rng.random(rows - 2) < up).astype(int)])
    return rng.normal(0, 1, (rows, features)) + 0.8 * y[:, None] * rng.normal(0, 1, features), y


def in_blocks(X: NDArray[np.float64], y: NDArray[np.int64], count: int = 3) -> Blocks:
    return lambda: zip(np.array_split(X, count), np.array_split(y, count), strict=True)


def scikit_learn(X: NDArray[np.float64], y: NDArray[np.int64], C: float) -> NDArray[np.float64]:
    model = LogisticRegression(C=C, class_weight="balanced", tol=1e-12, max_iter=5000, solver="newton-cholesky").fit(
        X, y
    )
    return np.append(model.coef_[0], model.intercept_)


@gentle
@given(st.integers(0, 1000), st.sampled_from([1e-4, 0.1, 1.0, 100.0]), st.sampled_from([0.05, 0.3, 0.9]))
def test_same_coefficients_as_scikit_learn(seed: int, C: float, up: float) -> None:
    X, y = data(seed, up=up)
    model = fit_logistic(in_blocks(X, y), C=C)
    assert np.append(model.coef_D, model.intercept) == pytest.approx(scikit_learn(X, y, C), abs=1e-6)


@gentle
@given(st.integers(0, 1000), st.integers(1, 30))
def test_blocks_do_not_matter_empty_ones_included(seed: int, count: int) -> None:
    X, y = data(seed, rows=20)
    whole, split = fit_logistic(lambda: [(X, y)]), fit_logistic(in_blocks(X, y, count))
    assert split.coef_D == pytest.approx(whole.coef_D, abs=1e-9)
    assert split.intercept == pytest.approx(whole.intercept, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("C", [1e-6, 1.0, 1e6])
def test_converges_on_separable_rows_at_any_scale(scale: float, C: float) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(60) < 7
    X = scale * (rng.normal(0, 1, (60, 3)) + 8 * y[:, None])
    model = fit_logistic(lambda: [(X, y)], C=C)
    weights, signs = C * np.where(y, 60 / 14, 60 / 106), np.where(y, 1.0, -1.0)
    wrong = weights * signs / (1 + np.exp(np.clip(signs * model.logits(X), None, 700)))
    gradient = np.append(model.coef_D - X.T @ wrong, -wrong.sum())
    assert np.abs(gradient / np.append(1 + np.abs(X).T @ weights, weights.sum())).max() < 1e-6


def test_a_row_may_stand_for_several() -> None:
    X, y = data(6)
    times = np.random.default_rng(6).integers(1, 4, len(y))
    repeated = fit_logistic(lambda: [(np.repeat(X, times, axis=0), np.repeat(y, times))])
    counts = np.stack([times * (y == 0), times * (y == 1)], axis=1)
    counted = fit_logistic(lambda: [(X, counts)])
    assert counted.coef_D == pytest.approx(repeated.coef_D, abs=1e-9)
    assert mean_log_loss(counted, lambda: [(X, counts)]) == pytest.approx(
        mean_log_loss(repeated, lambda: [(np.repeat(X, times, axis=0), np.repeat(y, times))])
    )


def test_a_shared_offset_of_all_rows_is_the_intercepts_business() -> None:
    X, y = data(2)
    model, moved = fit_logistic(in_blocks(X, y)), fit_logistic(in_blocks(X + 50, y))
    assert moved.logits(X + 50) == pytest.approx(model.logits(X), abs=1e-7)


def test_a_few_passes_over_the_same_blocks_suffice() -> None:
    alive: list[int] = []

    def blocks() -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        for seed in range(5):
            alive.append(seed)
            yield data(seed, rows=50)

    fit_logistic(blocks)
    assert alive == [0, 1, 2, 3, 4] * (len(alive) // 5)
    assert len(alive) // 5 <= 12


@pytest.mark.parametrize(
    ("X", "y", "complaint"),
    [
        ([[1.0], [2.0]], [1, 1], "2 thumbs-up and 0 thumbs-down"),
        ([[1.0], [2.0]], [0, 0], "0 thumbs-up and 2 thumbs-down"),
        ([[1.0], [2.0]], [1, 2], "neither 0 nor 1"),
        ([[1.0], [math.nan]], [1, 0], "NaN or infinite"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(X: list[list[float]], y: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fit_logistic(lambda: [(X, y)])


def test_no_blocks_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="both labels"):
        fit_logistic(list)


def test_too_few_iterations_are_an_error() -> None:
    X, y = data(3)
    with pytest.raises(RuntimeError, match="did not converge"):
        fit_logistic(in_blocks(X, y), max_iterations=1)


def test_the_model_survives_json_to_the_bit() -> None:
    X, y = data(4)
    model = fit_logistic(in_blocks(X, y))
    again = LogisticModel.from_state(json.loads(json.dumps(model.state_dict(), allow_nan=False)))
    assert (again.logits(X) == model.logits(X)).all()


def test_log_loss_weighs_the_classes_equally() -> None:
    X, y = data(5)
    assert mean_log_loss(LogisticModel(np.zeros(6), 0.0), in_blocks(X, y)) == pytest.approx(math.log(2))
    model = fit_logistic(in_blocks(X, y))
    losses = np.logaddexp(0, -np.where(y == 1, 1, -1) * model.logits(X))
    expected = (losses[y == 1].mean() + losses[y == 0].mean()) / 2
    assert mean_log_loss(model, in_blocks(X, y, 4)) == pytest.approx(expected)
