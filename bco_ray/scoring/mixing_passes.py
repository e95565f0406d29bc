"""The passes over settled parts that a mixture is worked out by: small columns in, sums out, added in part order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bco_ray.errors import DataError
from bco_ray.objective.density import WeightSums
from bco_ray.scoring.mixing import COLUMNS, Mixing, Mixture, bins_of, least_bin, times, wanted_older
from bco_ray.scoring.spread import each_of
from bco_ray.scoring.tokens import split_of
from bco_ray.storage import parquet

"""Up to so many are read by the one task itself."""
VERSIONS_SHOWN = 20


Key = tuple[str | None, bool]
"""(model that answered, label)"""


@dataclass(frozen=True)
class Survey:
    """Votes of the round, older ones by the bin of their priority, the time of the last vote, votes without one."""

    new: int = 0
    older: Counter[int] = field(default_factory=Counter)
    newest: float = 0.0
    undated: int = 0

    def merge(self, other: Survey) -> Survey:
        return Survey(
            self.new + other.new, self.older + other.older, max(self.newest, other.newest), self.undated + other.undated
        )


@dataclass(frozen=True)
class SurveyPass:
    """What the draw and the ages depend on."""

    mixing: Mixing

    def __call__(self, part: Path) -> Survey:
        rows = parquet.read_table(part, columns=list(COLUMNS))
        older = rows.filter(pa.array(self.mixing.is_older(rows)))
        return Survey(
            rows.num_rows - older.num_rows,
            Counter(bins_of(older, self.mixing).tolist()) if self.mixing.draws else Counter(),
            float(times(rows, missing=0.0).max(initial=0.0)),
            int(pc.sum(pc.and_(pc.is_null(rows["updated_at"]), pc.is_null(rows["created_at"]))).as_py() or 0),
        )


@dataclass(frozen=True)
class Shares:
    """Of the drawn votes. `older`: how many are older ones; of the train rows: factors by class (down, up), and rows
    and weights by (model, label).
    """

    votes: int = 0
    older: int = 0
    factors: tuple[WeightSums, WeightSums] = (WeightSums(), WeightSums())
    rows: Counter[Key] = field(default_factory=Counter)
    weights: Mapping[Key, float] = field(default_factory=dict)

    def merge(self, other: Shares) -> Shares:
        down, up = (mine.merge(theirs) for mine, theirs in zip(self.factors, other.factors, strict=True))
        return Shares(
            self.votes + other.votes,
            self.older + other.older,
            (down, up),
            self.rows + other.rows,
            {key: self.weights.get(key, 0.0) + other.weights.get(key, 0.0) for key in self.rows | other.rows},
        )


@dataclass(frozen=True)
class SharesPass:
    """What the drawn votes are, and what they count."""

    mixture: Mixture
    validation: float

    def __call__(self, part: Path) -> Shares:
        rows = parquet.read_table(part, columns=list(COLUMNS))
        rows = rows.filter(pa.array(self.mixture.drawn(rows)))
        older = int(self.mixture.mixing.is_older(rows).sum())
        train = pa.array([split_of(h, self.validation) == "train" for h in rows["prompt_hash"].to_pylist()], pa.bool_())
        votes, rows = rows.num_rows, rows.filter(train)
        factor_N, up_N = self.mixture.factors(rows), rows["label"].to_numpy(zero_copy_only=False).astype(bool)
        keys = list(zip(rows["model"].to_pylist(), up_N.tolist(), strict=True))
        weights: dict[Key, float] = {}
        for key, weight in zip(keys, (factor_N * rows["weight"].to_numpy()).tolist(), strict=True):
            weights[key] = weights.get(key, 0.0) + weight
        factors = (WeightSums.of(factor_N[~up_N]), WeightSums.of(factor_N[up_N]))
        return Shares(votes, older, factors, Counter(keys), weights)


def mix(mixing: Mixing, parts: Sequence[Path], validation: float) -> tuple[Mixture, dict[str, Any]]:
    """The mixture of these settled parts, and what a manifest says of it. Raises DataError if age leaves nothing."""
    each = each_of(parts)
    survey = Survey()
    if mixing.draws or mixing.half_life_days is not None:
        survey = reduce(Survey.merge, each(SurveyPass(mixing), parts), survey)
    wanted = wanted_older(survey.new, mixing.older)
    mixture = Mixture(mixing, survey.newest, least_bin(survey.older, wanted) if mixing.draws else None)
    shares = reduce(Shares.merge, each(SharesPass(mixture, validation), parts), Shares())
    if mixing.weighs:
        down, up = (_mean(factors) for factors in shares.factors)
        mixture = replace(mixture, chosen_mean=up, rejected_mean=down)
    return mixture, report_of(mixture, survey, shares)


def report_of(mixture: Mixture, survey: Survey, shares: Shares) -> dict[str, Any]:
    """Votes of both splits; shares, weights and effective sample size of the train rows.

    `off_policy`: not known to be on answers of the policy, of rows and of weight; `of_named`: of the votes that name a
    model, those on another's answers. None where the policy has no name, or no vote names a model.
    """
    mixing = mixture.mixing
    means = {True: mixture.chosen_mean, False: mixture.rejected_mean}
    rows = Counter[str | None]()
    weights: dict[str | None, float] = {}
    for (model, label), count in shares.rows.items():
        rows[model] += count
        weights[model] = weights.get(model, 0.0) + shares.weights[model, label] / means[label]
    total, weight = max(1, rows.total()), sum(weights.values()) or 1.0
    own, known = mixing.policy, mixing.policy is not None and any(name is not None for name in rows)
    shown = sorted(rows, key=lambda name: (-rows[name], name or ""))[:VERSIONS_SHOWN]
    return {
        "policy": own,
        "votes": shares.votes,
        "older_votes": shares.older,
        "older_not_drawn": survey.older.total() - shares.older if mixing.draws else 0,
        "undated_votes": survey.undated,
        "off_policy": {
            "rows": 1 - rows[own] / total,
            "weight": 1 - weights.get(own, 0.0) / weight,
            "of_named": 1 - rows[own] / (rows.total() - rows[None]),
        } if known else None,
        "by_version": [
            {"model": name, "rows": rows[name], "share": rows[name] / total, "weight_share": weights[name] / weight}
            for name in shown
        ],
        "ess_fraction": {
            name: factors.ess_fraction if factors.count else None
            for name, factors in zip(("rejected", "chosen"), shares.factors, strict=True)
        },
    }  # fmt: skip


def _mean(factors: WeightSums) -> float:
    if not factors.count:
        return 1.0
    if not factors.total:
        raise DataError(
            "rounds.half_life_days: all votes of one kind are so many half-lives older than the newest vote that "
            "nothing is left of them. Set a longer one, or look for a vote with a wrong date."
        )
    return factors.mean
