"""The passes over PROMPTS files that the fit is made of: each a picklable function of one file, whose results are small
and add up. They are added in file order, so the number of workers does not show in any bit.

Shapes: N prompts of one block, D the embedding's width, E = D + 1, K models, F folds, 2 classes (down, up).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from bco_ray.objective.foldout import FoldOut, Terms
from bco_ray.scoring.matching_prompts import Features, Prompts, train_prompts

T = TypeVar("T")

FOLDS = 5


class Each(Protocol):
    """Applies a picklable function to every shard; the results come in shard order."""

    def __call__(self, function: Callable[[Path], T], shards: Sequence[Path], /) -> Iterator[T]: ...


def in_process(function: Callable[[Path], T], shards: Sequence[Path], /) -> Iterator[T]:
    """`Each` here and now."""
    return map(function, shards)


def fold_of(prompt_hash_N: np.ndarray) -> np.ndarray:
    """Fold 0..F-1 per prompt: the same in every file, whatever its other rows."""
    return np.asarray(prompt_hash_N % FOLDS)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is there to fit: rows per fold and class (F, 2), distinct prompts and smallest hashes per class."""

    count_F2: np.ndarray
    distinct: tuple[int, int]
    smallest: tuple[np.ndarray, np.ndarray]

    @classmethod
    def none(cls) -> Survey:
        return cls(np.zeros((FOLDS, 2)), (0, 0), (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)))

    def merge(self, other: Survey, keep: int) -> Survey:
        pairs = zip(self.smallest, other.smallest, strict=True)
        first, second = (smallest_of(np.concatenate(pair), keep) for pair in pairs)
        distinct = (self.distinct[0] + other.distinct[0], self.distinct[1] + other.distinct[1])
        return Survey(self.count_F2 + other.count_F2, distinct, (first, second))


@dataclass(frozen=True)
class SurveyPass:
    """Counts, without a look at the embeddings. `keep`: how many smallest hashes per class."""

    keep: int

    def __call__(self, path: Path) -> Survey:
        total = Survey.none()
        for block in train_prompts(path, embedded=False):
            total = total.merge(self._of(block), self.keep)
        return total

    def _of(self, block: Prompts) -> Survey:
        count_F2 = np.zeros((FOLDS, 2))
        np.add.at(count_F2, fold_of(block.prompt_hash_N), block.count_N2)
        down, up = (np.unique(block.prompt_hash_N[block.count_N2[:, label] > 0]) for label in (0, 1))
        return Survey(count_F2, (len(down), len(up)), (smallest_of(down, self.keep), smallest_of(up, self.keep)))


@dataclass(frozen=True)
class DrawPass:
    """The prompts of a file up to a hash per class; beyond it, a prompt's votes of that class are left out."""

    last_hash: tuple[int, int]

    def __call__(self, path: Path) -> Prompts | None:
        if not any(len(self._drawn(block)) for block in train_prompts(path, embedded=False)):
            return None
        drawn = [self._drawn(block) for block in train_prompts(path)]
        return Prompts(*(np.concatenate(column) for column in zip(*map(_columns, drawn), strict=True)))

    def _drawn(self, block: Prompts) -> Prompts:
        count_N2 = np.where(block.prompt_hash_N[:, None] <= np.array(self.last_hash), block.count_N2, 0.0)
        return Prompts(block.embedding_ND, block.prompt_hash_N, count_N2).only(np.any(count_N2, axis=1))


@dataclass(frozen=True, eq=False)
class TermsPass:
    """The objective of all models and its gradient, each at its own point: what the exact fit is made of.

    `rough`: products in float32, at half the cost, for as long as the points are far from where they end.
    """

    problem: FoldOut
    mean_D: np.ndarray
    point_EK: np.ndarray
    rough: bool = False

    def __call__(self, path: Path) -> Terms:
        dtype = np.float32 if self.rough else np.float64
        total = Terms(np.zeros(self.point_EK.shape[1]), np.zeros_like(self.point_EK))
        for block in train_prompts(path):
            features = Features.of(block.embedding_ND, self.mean_D, dtype)
            logit_NK = features.logits(self.point_EK)
            value_K, residual_NK = self.problem.losses(logit_NK, block.count_N2, fold_of(block.prompt_hash_N))
            total = total + Terms(value_K, features.gradient(residual_NK))
        return total


def smallest_of(hashes: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest, in no order."""
    return hashes if len(hashes) <= count else np.partition(hashes, count - 1)[:count]


def _columns(block: Prompts) -> tuple[np.ndarray, ...]:
    return block.embedding_ND, block.prompt_hash_N, block.count_N2
