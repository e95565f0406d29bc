"""AUC of many judges on the held-out votes of several seeds, with intervals over whole prompts or people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_votes_data import By, Votes

from bco_ray.evaluation.bootstrap import Floats, Resamples, Statistic, draw
from bco_ray.evaluation.weighted import auc_of, difference_of, on_rows

RESAMPLES, CONFIDENCE = 1000, 0.95
FEWEST_USERS = 10
"""Fewer people than this are not resampled; their prompts are."""


@dataclass(frozen=True)
class Judged:
    """One seed's held-out votes (rows of `Votes`), and what each judge makes of each answer, (A,)."""

    seed: int
    test: NDArray[np.int64]
    scores: dict[str, NDArray[np.float64]]


def auc(score_A: NDArray[np.float64], votes: Votes, rows: NDArray[np.int64]) -> float:
    """Of the votes in `rows`, each scored as its answer is."""
    return float(auc_of(score_A[votes.answer_N[rows]], votes.label_N[rows])(np.ones((1, len(rows))))[0])


def over_seeds(votes: Votes, by: By, judged: Sequence[Judged], baseline: str) -> dict[str, Any]:
    """By judge: AUC of each seed, their mean, and the mean's difference to the baseline's on the same resamples.

    Votes on answers that some judge cannot read count for none. Prompts or people are drawn once for all seeds, so one
    that is held out by several seeds is drawn in all of them or in none.
    """
    clusters: By = "user" if by == "user" and len(np.unique(votes.user_N)) >= FEWEST_USERS else "prompt"
    tests = [_readable(votes, one) for one in judged]
    rows = np.concatenate(tests)
    ends = np.cumsum([0, *(len(test) for test in tests)])
    places = [np.arange(start, end) for start, end in pairwise(ends)]
    names = list(judged[0].scores)
    of_seed = {name: [_auc(votes, one, test, name) for one, test in zip(judged, tests, strict=True)] for name in names}
    means = {name: _mean([on_rows(*each) for each in zip(of_seed[name], places, strict=True)]) for name in names}
    over = {f"\0{name}": difference_of(means[name], means[baseline]) for name in names}
    group_N = votes.groups(clusters)[rows]
    drawn = draw(means | over, Resamples(group_N, count=RESAMPLES, seed=0), len(rows))
    return {
        "clusters": f"{len(np.unique(group_N))} {clusters}s",
        "judges": {
            name: {
                "seeds": {
                    str(one.seed): float(statistic(np.ones((1, len(test))))[0])
                    for one, test, statistic in zip(judged, tests, of_seed[name], strict=True)
                },
                "auc": drawn[name].estimate(CONFIDENCE).model_dump(),
                "over": drawn[f"\0{name}"].estimate(CONFIDENCE).model_dump(),
            }
            for name in names
        },
    }


def _readable(votes: Votes, one: Judged) -> NDArray[np.int64]:
    readable_A = np.all([np.isfinite(score_A) for score_A in one.scores.values()], axis=0)
    return one.test[readable_A[votes.answer_N[one.test]]]


def _auc(votes: Votes, one: Judged, test: NDArray[np.int64], name: str) -> Statistic:
    return auc_of(one.scores[name][votes.answer_N[test]], votes.label_N[test])


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    """Over seeds; a seed of whose held-out prompts or people none was drawn has no part in it."""

    def mean(weights_RN: Floats) -> Floats:
        values_SR = np.stack([statistic(weights_RN) for statistic in statistics])
        defined_SR = np.isfinite(values_SR)
        values: Floats = np.where(defined_SR, values_SR, 0.0).sum(0) / defined_SR.sum(0)
        return values

    return mean
