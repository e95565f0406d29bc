"""Fitting the fold models: a sample in memory finds the strength and a starting point, passes over all rows the rest.

The sample's Hessians, scaled up, steer the exact steps (`objective/foldout.py`), so no pass over all rows ever costs
more than a gradient, and what comes back from a shard is K gradients. A log that fits into the sample needs few passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import numpy as np

from bco_ray.objective.foldout import FoldOut, Minimum, Terms, minimise
from bco_ray.scoring.matching_passes import (
    FOLDS,
    DrawPass,
    Each,
    Survey,
    SurveyPass,
    TermsPass,
    fold_of,
)
from bco_ray.scoring.matching_prompts import BLOCK_ROWS, Features, Prompts

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse L2 strengths C to choose from on held-out log-loss."""
PROMPTS_PER_CLASS = 20_000
_SAMPLE_TOLERANCE, _ROUGH_TOLERANCE, _EXACT_TOLERANCE = 1e-3, 1e-4, 3e-7
"""A step that is not longer is the last: each is some ten times shorter than the one before, so what is left is too."""
_ROUNDING = 1e-6
"""Of an objective whose products are float32: on the sample, and far from the minimum."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Prompts to start from: features (N, E) float32 about `mean_D`, rows per class (N, 2), folds (N,)."""

    mean_D: np.ndarray
    features_NE: np.ndarray
    count_N2: np.ndarray
    fold_N: np.ndarray
    count_F2: np.ndarray

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(features, counts, folds) of a thousand prompts at a time."""
        for first in range(0, len(self.fold_N), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            yield self.features_NE[rows], self.count_N2[rows], self.fold_N[rows]


@dataclass(frozen=True, eq=False)
class FoldFit:
    """The fold models' coefficients (E, K), for features about `mean_D`; `strength` is the C they were fitted with."""

    mean_D: np.ndarray
    strength: float
    minimum: Minimum


def survey_shards(shards: Sequence[Path], each: Each, keep: int = PROMPTS_PER_CLASS) -> Survey:
    """Counts of all shards, and the smallest prompt hashes of each class."""
    return reduce(lambda one, other: one.merge(other, keep), each(SurveyPass(keep), shards), Survey.none())


def draw_sample(shards: Sequence[Path], survey: Survey, each: Each) -> Sample:
    """The prompts with the smallest hashes of each class, so that the sample does not depend on order.

    Raises ValueError if a class is empty.
    """
    last_hash = (int(survey.smallest[0].max()), int(survey.smallest[1].max()))
    found = (drawn for drawn in each(DrawPass(last_hash), shards) if drawn is not None)
    return _gathered(found, sum(map(len, survey.smallest)))


def fit_folds(
    shards: Sequence[Path],
    survey: Survey,
    sample: Sample,
    *,
    each: Each,
    strength: float | None = None,
    whole: bool = False,
) -> FoldFit:
    """The minimum over all rows, exactly. `strength` None: chosen on the sample; `whole`: one model of every row."""
    strength = choose_strength(sample) if strength is None else strength
    of_sample, problem = (
        FoldOut.of(count_F2, C=strength, whole=whole) for count_F2 in (sample.count_F2, survey.count_F2)
    )
    start_EK = _descend(sample, of_sample, np.zeros((sample.features_NE.shape[1], len(problem.left_out_K))))
    share = float(sample.count_F2.sum() / survey.count_F2.sum())
    inverse_KEE = of_sample.inverses(_curvature(sample, of_sample, start_EK), share=share)

    def evaluate(rough: bool, point_EK: np.ndarray) -> Terms:
        parts = each(TermsPass(problem, sample.mean_D, point_EK, rough), shards)
        return reduce(Terms.__add__, parts, problem.penalty(point_EK))

    near = minimise(partial(evaluate, True), start_EK, inverse_KEE, tolerance=_ROUGH_TOLERANCE, rounding=_ROUNDING)
    exact = minimise(partial(evaluate, False), near.point_EK, inverse_KEE, tolerance=_EXACT_TOLERANCE)
    return FoldFit(sample.mean_D, strength, replace(exact, passes=near.passes + exact.passes))


def choose_strength(sample: Sample) -> float:
    """The C whose fold models give the least log-loss on the folds they have not seen, both classes counting half."""
    point_EK = np.zeros((sample.features_NE.shape[1], len(sample.count_F2)))
    loss = {}
    for C in STRENGTHS:
        point_EK = _descend(sample, FoldOut.of(sample.count_F2, C=C), point_EK)
        loss[C] = _held_out_loss(sample, point_EK)
    return min(STRENGTHS, key=loss.__getitem__)


def _descend(sample: Sample, problem: FoldOut, start_EK: np.ndarray) -> np.ndarray:
    def evaluate(point_EK: np.ndarray) -> Terms:
        parts = (problem.terms(point_EK, *block) for block in sample.blocks())
        return reduce(Terms.__add__, parts, problem.penalty(point_EK))

    inverse_KEE = problem.inverses(_curvature(sample, problem, start_EK))
    return minimise(evaluate, start_EK, inverse_KEE, tolerance=_SAMPLE_TOLERANCE, rounding=_ROUNDING).point_EK


def _curvature(sample: Sample, problem: FoldOut, point_EK: np.ndarray) -> np.ndarray:
    """By fold (F, E, E), at the point in the models' midst."""
    point_E = point_EK.mean(axis=1)
    width = len(point_E)
    total_FEE = np.zeros((len(sample.count_F2), width, width))
    for block in sample.blocks():
        total_FEE += problem.curvature(point_E, *block)
    return total_FEE


def _held_out_loss(sample: Sample, point_EK: np.ndarray) -> float:
    loss_2 = np.zeros(2)
    for features_NE, count_N2, fold_N in sample.blocks():
        logit_N = (features_NE @ point_EK.astype(np.float32))[np.arange(len(fold_N)), fold_N].astype(np.float64)
        loss_2 += (np.logaddexp(0, logit_N) @ count_N2[:, 0], np.logaddexp(0, -logit_N) @ count_N2[:, 1])
    return float((loss_2 / sample.count_F2.sum(axis=0)).mean())


def _gathered(found: Iterator[Prompts], most: int) -> Sample:
    """One after the other into arrays that are made once: the sample is the largest thing in memory."""
    features_NE = np.empty((0, 0), dtype=np.float32)
    prompt_hash_N, count_N2 = np.empty(most, dtype=np.int64), np.empty((most, 2))
    end = 0
    for drawn in found:
        if not end:
            features_NE = np.empty((most, drawn.embedding_ND.shape[1] + 1), dtype=np.float32)
        new = slice(end, min(end + len(drawn), most))
        end = new.stop
        fitting = slice(new.stop - new.start)
        features_NE[new, :-1] = drawn.embedding_ND[fitting]
        prompt_hash_N[new], count_N2[new] = drawn.prompt_hash_N[fitting], drawn.count_N2[fitting]
    return _centred(features_NE[:end], prompt_hash_N[:end], count_N2[:end])


def _centred(features_NE: np.ndarray, prompt_hash_N: np.ndarray, count_N2: np.ndarray) -> Sample:
    """Turns embeddings into features about the rows' mean (a float32, so that rough passes use the same), in place."""
    blocks = [slice(first, first + BLOCK_ROWS) for first in range(0, len(count_N2), BLOCK_ROWS)]
    votes_N = count_N2.sum(axis=1)
    total_D = sum(votes_N[rows] @ features_NE[rows, :-1].astype(np.float64) for rows in blocks)
    mean_D = np.asarray(total_D / votes_N.sum(), dtype=np.float32).astype(np.float64)
    for rows in blocks:
        features_NE[rows] = Features.of(features_NE[rows, :-1], mean_D).matrix()
    fold_N = fold_of(prompt_hash_N)
    count_F2 = np.stack([np.bincount(fold_N, count_N2[:, label], minlength=FOLDS) for label in (0, 1)], axis=1)
    return Sample(mean_D, features_NE, count_N2, fold_N, count_F2)
