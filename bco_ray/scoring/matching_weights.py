"""The fitted density ratio as a value: what a vote on a prompt counts, and the passes that judge it on a whole log.

Shapes: N prompts or rows, D the embedding's width, 2 classes (down, up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bco_ray.objective.density import WeightSums, density_ratio_from_logits, mixture_weights
from bco_ray.objective.histogram import ScoreHistogram
from bco_ray.objective.logistic import LogisticModel
from bco_ray.scoring.matching_passes import Each, fold_of
from bco_ray.scoring.matching_prompts import BLOCK_ROWS, Features, Prompts, train_prompts

Target = Literal["positive", "mixture"]
"""Whose prompts the weighted votes are on: those of thumbs-up, or half those of thumbs-up and half of thumbs-down."""

EXAMPLES = 5
_FORMAT = "matching/1"


@dataclass(frozen=True, eq=False)
class Matching:
    """K fold models on centred unit-length embeddings, one calibration of their logits, bounds of the ratio, and the
    mean weights of each class's train rows, by which weights are divided.
    """

    mean_D: np.ndarray
    folds: tuple[LogisticModel, ...]
    calibration: LogisticModel
    target: Target
    min_density_ratio: float
    max_density_ratio: float
    chosen_mean: float = 1.0
    rejected_mean: float = 1.0

    def raw_logits(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray) -> np.ndarray:
        """Each prompt's logit (N,) by the model of its own fold, which was fitted without it."""
        point_EK = np.stack([np.append(model.coef_D, model.intercept) for model in self.folds], axis=1)
        logit_N = np.empty(len(prompt_hash_N))
        for first in range(0, len(logit_N), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            logit_NK = Features.of(embedding_ND[rows], self.mean_D).logits(point_EK)
            logit_N[rows] = np.take_along_axis(logit_NK, fold_of(prompt_hash_N[rows])[:, None], axis=1)[:, 0]
        return logit_N

    def logits(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray) -> np.ndarray:
        """Out-of-fold log density ratio per prompt (N,), calibrated, not clamped."""
        return self.calibration.logits(self.raw_logits(embedding_ND, prompt_hash_N)[:, None])

    def weights(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        """What each row's vote counts (N,), 1 on average over the train rows of its class."""
        down_N, up_N = self.bare_weights(self.logits(embedding_ND, prompt_hash_N))
        return np.where(labels_N, up_N / self.chosen_mean, down_N / self.rejected_mean)

    def bare_weights(self, logits_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of a thumbs-down and of a thumbs-up vote on each prompt, not yet divided by their means."""
        ratio_N = density_ratio_from_logits(
            logits_N,
            n_chosen=1,
            n_rejected=1,
            balanced=True,
            min_density_ratio=self.min_density_ratio,
            max_density_ratio=self.max_density_ratio,
            normalise="none",
        )
        if self.target == "positive":
            return ratio_N, np.ones_like(ratio_N)
        return mixture_weights(ratio_N, chosen=False), mixture_weights(ratio_N, chosen=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, exact to the bit."""
        return {
            "format": _FORMAT,
            "mean": self.mean_D.tolist(),
            "folds": [model.state_dict() for model in self.folds],
            "calibration": self.calibration.state_dict(),
            "target": self.target,
            "min_density_ratio": self.min_density_ratio,
            "max_density_ratio": self.max_density_ratio,
            "chosen_mean": self.chosen_mean,
            "rejected_mean": self.rejected_mean,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Matching:
        """The inverse of `state_dict`. Raises ValueError on anything else."""
        if state.get("format") != _FORMAT:
            raise ValueError(f"not a matching classifier of format {_FORMAT}: {str(state)[:100]}")
        numbers = {
            key: state[key] for key in ("min_density_ratio", "max_density_ratio", "chosen_mean", "rejected_mean")
        }
        return cls(
            mean_D=np.array(state["mean"], dtype=np.float64),
            folds=tuple(map(LogisticModel.from_state, state["folds"])),
            calibration=LogisticModel.from_state(state["calibration"]),
            target=state["target"],
            **numbers,
        )


@dataclass(frozen=True)
class HistogramPass:
    """How the out-of-fold logits of both classes are spread."""

    matching: Matching

    def __call__(self, path: Path) -> ScoreHistogram:
        total = self.empty()
        for block in train_prompts(path):
            total = total.add(self.matching.raw_logits(block.embedding_ND, block.prompt_hash_N), block.count_N2)
        return total

    def empty(self) -> ScoreHistogram:
        """Features have length 1, so no logit is further from its model's intercept than the coefficients' length."""
        middle = [model.intercept for model in self.matching.folds]
        reach = max(float(np.linalg.norm(model.coef_D)) for model in self.matching.folds) + 1e-6
        return ScoreHistogram.empty(min(middle) - reach, max(middle) + reach)


Likest = tuple[tuple[float, int], ...]
"""(likeness to the other class, prompt hash), ascending."""


@dataclass(frozen=True)
class Weighed:
    """What the weights of a log are like. `ratio` is over all rows that are weighted, before the target's formula.

    `likest[label][0]`: the prompts of that class (0 down, 1 up) least like those of the other, `[1]` those most like.
    """

    ratio: WeightSums = field(default_factory=WeightSums)
    rejected: WeightSums = field(default_factory=WeightSums)
    chosen: WeightSums = field(default_factory=WeightSums)
    likest: tuple[tuple[Likest, Likest], tuple[Likest, Likest]] = (((), ()), ((), ()))

    def merge(self, other: Weighed) -> Weighed:
        (down, up), (down_too, up_too) = self.likest, other.likest
        return Weighed(
            self.ratio.merge(other.ratio),
            self.rejected.merge(other.rejected),
            self.chosen.merge(other.chosen),
            (_ends((*down[0], *down[1], *down_too[0], *down_too[1])), _ends((*up[0], *up[1], *up_too[0], *up_too[1]))),
        )


@dataclass(frozen=True)
class WeighPass:
    """Sums of the weights before they are divided by their means, and the prompts at both ends."""

    matching: Matching

    def __call__(self, path: Path) -> Weighed:
        return reduce(Weighed.merge, map(self._weighed, train_prompts(path)), Weighed())

    def _weighed(self, block: Prompts) -> Weighed:
        matching = self.matching
        logits_N = matching.logits(block.embedding_ND, block.prompt_hash_N)
        down_N, up_N = matching.bare_weights(logits_N)
        weighted_N = block.count_N2[:, 0] if matching.target == "positive" else block.count_N2.sum(axis=1)
        low, high = matching.min_density_ratio, matching.max_density_ratio
        return Weighed(
            WeightSums.of(np.exp(np.minimum(logits_N, 700)), low=low, high=high, count_N=weighted_N),
            WeightSums.of(down_N, count_N=block.count_N2[:, 0]),
            WeightSums.of(up_N, count_N=block.count_N2[:, 1]),
            (
                _likest_of(logits_N, block.prompt_hash_N, block.count_N2[:, 0]),
                _likest_of(-logits_N, block.prompt_hash_N, block.count_N2[:, 1]),
            ),
        )


def histogram_of(matching: Matching, shards: Sequence[Path], each: Each) -> ScoreHistogram:
    """Raw out-of-fold logits of all shards."""
    judge = HistogramPass(matching)
    return reduce(ScoreHistogram.merge, each(judge, shards), judge.empty())


def weigh(matching: Matching, shards: Sequence[Path], each: Each) -> Weighed:
    """Weights of all shards, in sums."""
    return reduce(Weighed.merge, each(WeighPass(matching), shards), Weighed())


def _likest_of(likeness_N: np.ndarray, prompt_hash_N: np.ndarray, count_N: np.ndarray) -> tuple[Likest, Likest]:
    mine_N = np.flatnonzero(count_N)
    order = mine_N[np.lexsort((prompt_hash_N[mine_N], likeness_N[mine_N]))]
    ends = np.concatenate([order[:EXAMPLES], order[-EXAMPLES:]])
    return _ends(tuple((float(likeness_N[i]), int(prompt_hash_N[i])) for i in ends))


def _ends(pairs: Likest) -> tuple[Likest, Likest]:
    """The least and the greatest, each once."""
    ordered = tuple(sorted(set(pairs)))
    return ordered[:EXAMPLES], ordered[-EXAMPLES:]
