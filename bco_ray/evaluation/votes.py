"""Held-out votes judged by a model: every number about them, with intervals over prompts and users, and against another
model's.

N rows, one per vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bco_ray.evaluation.bootstrap import Drawn, Floats, Resamples, Statistic, draw
from bco_ray.evaluation.calibration import brier_of, ece_of, probability, reliability
from bco_ray.evaluation.weighted import Labels, auc_of, average_of, difference_of, mean_of, on_rows, spearman_of
from bco_ray.objective.source_offsets import SourceOffsets
from bco_ray.storage.evaluations import FEWEST_OF_A_CLASS, FEWEST_PROMPTS, Group, Metrics, RewardBars, Votes

Key = tuple[str, str, str]
"""Kind of group, its name, metric; the group of all votes is ("", "")."""

MOST_SOURCES = 20
"""Others are left out; all are in the totals."""
_UNNAMED = "(none)"
_BARS = 40

_OF_BOTH = {"auc", "balanced_accuracy", "margin", "brier", "ece"}
"""What is undefined without votes of both kinds."""


@dataclass(frozen=True)
class Settings:
    """How to measure. `delta_from` says where delta comes from (see `storage.evaluations.Votes`)."""

    beta: float
    confidence: float
    resamples: int
    bins: int
    seed: int


@dataclass(frozen=True)
class JudgedVotes:
    """`tokens_N`: of the completion. `prompt_N` tells prompts apart, `user_N` users (a vote without one has one of its
    own): votes on one prompt, or of one user, stand or fall together.
    """

    reward_N: Floats
    label_N: Labels
    logp_N: Floats
    tokens_N: NDArray[np.int64]
    prompt_N: NDArray[np.int64]
    source_N: NDArray[np.str_]
    user_N: NDArray[np.int64]

    @cached_property
    def own_delta(self) -> float:
        """Half the sum of the class means (eq. 7 of the paper); 0 without both classes."""
        up, down = self.reward_N[self.label_N], self.reward_N[~self.label_N]
        return float((up.mean() + down.mean()) / 2) if len(up) and len(down) else 0.0

    def deltas(self, delta: float, offsets: SourceOffsets | None) -> Floats:
        """What each row is measured by: delta, or that of its source."""
        delta_N: Floats = np.full(len(self.reward_N), delta)
        return delta_N if offsets is None else delta_N - np.array([offsets.of(str(source)) for source in self.source_N])

    def at_reference(self, beta: float) -> JudgedVotes:
        """As the reference itself would have judged them."""
        return replace(self, reward_N=np.zeros_like(self.reward_N), logp_N=self.logp_N - self.reward_N / beta)

    def same_rows(self, other: JudgedVotes) -> bool:
        """Whether row n is the same vote in both."""
        pairs = ((self.label_N, other.label_N), (self.prompt_N, other.prompt_N))
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


@dataclass(frozen=True)
class Measured:
    """The result, and what was drawn for it: differences of two models are taken from draws. `users`: how many cast the
    votes (each without a name is one).
    """

    votes: Votes
    users: int
    drawn: dict[str, Drawn]

    def less(self, other: Measured, confidence: float) -> Metrics:
        """Of each metric, this one's less the other's."""
        return {name: (drawn - other.drawn[name]).estimate(confidence) for name, drawn in self.drawn.items()}


def measure(
    votes: JudgedVotes,
    delta: float,
    delta_from: Literal["run", "votes"],
    settings: Settings,
    offsets: SourceOffsets | None = None,
) -> Measured:
    """Everything about one model's rewards. With `offsets` each row is measured by its source's delta."""
    rows = len(votes.reward_N)
    delta_N = votes.deltas(delta, offsets)
    groups = {("", ""): _overall(votes, delta_N, settings), **_classes(votes, delta_N), **_sources(votes, delta_N)}
    drawn = _drawn(votes, groups, settings)

    def metrics(*key: str) -> Metrics:
        return {name: drawn[key[0], key[1], name].estimate(settings.confidence) for name in groups[key[0], key[1]]}

    p_N = probability(votes.reward_N, delta_N)
    result = Votes(
        **_counts(votes, np.ones(rows, np.bool_)),
        metrics=metrics("", ""),
        delta=delta,
        delta_from=delta_from,
        by_class={name: _group(votes, _of_class(votes, name), metrics("class", name)) for name in ("up", "down")},
        by_source={
            name: _group(votes, votes.source_N == name, metrics("source", name))
            for kind, name in groups if kind == "source"
        },
        reliability=reliability(p_N, votes.label_N, settings.bins),
        bars=_bars(votes),
        delta_by_source=offsets.deltas(delta) if offsets else {},
    )  # fmt: skip
    return Measured(result, len(np.unique(votes.user_N)), {name: drawn["", "", name] for name in groups["", ""]})


def _drawn(
    votes: JudgedVotes, groups: Mapping[tuple[str, str], Mapping[str, Statistic]], settings: Settings
) -> dict[Key, Drawn]:
    """By prompt, and by user where one has voted more than once. What too few prompts are behind has no draws."""
    flat = {"\0".join((*key, name)): statistic for key, found in groups.items() for name, statistic in found.items()}
    several = len(np.unique(votes.user_N)) < len(votes.user_N)
    by_prompt, *by_user = (
        draw(flat, Resamples(of_N, count=settings.resamples, seed=settings.seed), len(votes.user_N))
        for of_N in ([votes.prompt_N, votes.user_N] if several else [votes.prompt_N])
    )
    drawn = {}
    for key, found in groups.items():
        alone, both = _suffice(votes, *key)
        for name in found:
            flat_name = "\0".join((*key, name))
            one = by_prompt[flat_name].beside(by_user[0][flat_name]) if by_user else by_prompt[flat_name]
            drawn[*key, name] = one if (both if name in _OF_BOTH else alone) else one.without_draws()
    return drawn


def _suffice(votes: JudgedVotes, kind: str, name: str) -> tuple[bool, bool]:
    """Whether enough prompts are behind a group for intervals to mean anything; and for those of both classes."""
    everything_N = np.ones_like(votes.label_N)
    of_N = {"class": _of_class(votes, name), "source": votes.source_N == name}.get(kind, everything_N)
    enough = _prompts(votes, of_N) >= FEWEST_PROMPTS
    of_a_class = min(_prompts(votes, of_N & side_N) for side_N in (votes.label_N, ~votes.label_N))
    return enough, enough and of_a_class >= FEWEST_OF_A_CLASS


def _prompts(votes: JudgedVotes, of_N: Labels) -> int:
    return len(np.unique(votes.prompt_N[of_N]))


def _overall(votes: JudgedVotes, delta_N: Floats, settings: Settings) -> dict[str, Statistic]:
    """Accuracy: a row is right on its label's side of delta. KL (nats per answer): -mean(r) / beta."""
    up_N, right_N = votes.label_N, _right(votes, delta_N)
    p_N = probability(votes.reward_N, delta_N)
    return {
        "auc": auc_of(votes.reward_N, up_N),
        "accuracy": mean_of(right_N),
        "balanced_accuracy": average_of(mean_of(right_N, up_N), mean_of(right_N, ~up_N)),
        "margin": difference_of(mean_of(votes.reward_N, up_N), mean_of(votes.reward_N, ~up_N)),
        "kl": mean_of(-votes.reward_N / settings.beta),
        "brier": brier_of(p_N, up_N),
        "ece": ece_of(p_N, up_N, settings.bins),
        "length_correlation": spearman_of(votes.reward_N, votes.tokens_N),
    }


def _classes(votes: JudgedVotes, delta_N: Floats) -> dict[tuple[str, str], dict[str, Statistic]]:
    """Length and likelihood of each class's answers, and how its rows were judged."""
    found = {}
    for name in ("up", "down"):
        of_N = _of_class(votes, name)
        found["class", name] = {
            "accuracy": mean_of(_right(votes, delta_N), of_N),
            "reward": mean_of(votes.reward_N, of_N),
            "logp": mean_of(votes.logp_N, of_N),
            "tokens": mean_of(votes.tokens_N, of_N),
        }
    return found


def _sources(votes: JudgedVotes, delta_N: Floats) -> dict[tuple[str, str], dict[str, Statistic]]:
    """Those with most votes, largest first."""
    found = {}
    for name, _ in Counter(votes.source_N.tolist()).most_common(MOST_SOURCES):
        rows = np.flatnonzero(votes.source_N == name)
        reward, up, right = votes.reward_N[rows], votes.label_N[rows], _right(votes, delta_N)[rows]
        statistics = {
            "auc": auc_of(reward, up),
            "accuracy": mean_of(right),
            "margin": difference_of(mean_of(reward, up), mean_of(reward, ~up)),
            "up_rate": mean_of(up),
        }
        found["source", name] = {key: on_rows(statistic, rows) for key, statistic in statistics.items()}
    return found


def _right(votes: JudgedVotes, delta_N: Floats) -> Floats:
    """1 or 0; half for a reward that is delta, as all of the reference's are."""
    side_N = np.sign(votes.reward_N.astype(np.float64) - delta_N)
    return (1 + np.where(votes.label_N, side_N, -side_N)) / 2


def _of_class(votes: JudgedVotes, name: str) -> Labels:
    return votes.label_N if name == "up" else ~votes.label_N


def _counts(votes: JudgedVotes, of_N: Labels) -> dict[str, int]:
    ups = int(votes.label_N[of_N].sum())
    return {"rows": int(of_N.sum()), "ups": ups, "prompts": _prompts(votes, of_N)}


def _group(votes: JudgedVotes, of_N: Labels, metrics: Metrics) -> Group:
    return Group(**_counts(votes, of_N), metrics=metrics)


def _bars(votes: JudgedVotes) -> RewardBars:
    edges = np.histogram_bin_edges(votes.reward_N, _BARS) if len(votes.reward_N) else np.array([0.0, 1.0])
    up, down = (np.histogram(votes.reward_N[of_N], edges)[0] for of_N in (votes.label_N, ~votes.label_N))
    return RewardBars(edges=edges.tolist(), up=up.tolist(), down=down.tolist())


def named(sources: pa.ChunkedArray) -> NDArray[np.str_]:
    """A column of sources as `JudgedVotes` has them."""
    return np.array([source or _UNNAMED for source in sources.to_pylist()], dtype=np.str_)


def told_apart(users: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of users as `JudgedVotes` has them: a vote without a user has a number of its own."""
    number_N = pc.index_in(users, value_set=pc.unique(users.drop_null()))
    own_N = pa.array(len(users) + np.arange(len(users), dtype=np.int64))
    numbers: NDArray[np.int64] = pc.coalesce(pc.cast(number_N, pa.int64()), own_N).to_numpy()
    return numbers
