"""What the matching stage reads: each pass over the PROMPTS files as a picklable function of one file, whose results
are small and add up. They are added in file order, so the number of workers does not show in any bit.

Shapes: N prompts of one block, D the embedding's width, E = D + 1, K models, F folds, 2 classes (down, up). A prompt
with n thumbs-up and m thumbs-down counts as n + m rows. Blocks are read a thousand prompts at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.errors import DataError
from bco_ray.objective.foldout import FoldOut, Terms

T = TypeVar("T")

FOLDS = 5
BLOCK_ROWS = 1024
_COUNTS = ["split", "prompt_hash", "chosen", "rejected"]


class Each(Protocol):
    """Applies a picklable function to every shard; the results come in shard order."""

    def __call__(self, function: Callable[[Path], T], shards: Sequence[Path], /) -> Iterator[T]: ...


def in_process(function: Callable[[Path], T], shards: Sequence[Path], /) -> Iterator[T]:
    """`Each` here and now."""
    return map(function, shards)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Train prompts: embeddings (N, D) float32 (D = 0 where they were not read), hashes (N,), rows per class (N, 2)."""

    embedding_ND: np.ndarray
    prompt_hash_N: np.ndarray
    count_N2: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_hash_N)

    def only(self, mask_N: np.ndarray) -> Prompts:
        return Prompts(self.embedding_ND[mask_N], self.prompt_hash_N[mask_N], self.count_N2[mask_N])


def train_prompts(path: Path, *, embedded: bool = True) -> Iterator[Prompts]:
    """The train prompts of a file, block by block. Raises DataError where an embedding is not finite."""
    columns = [*_COUNTS, "embedding"] if embedded else _COUNTS
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(BLOCK_ROWS, columns=columns, use_threads=False):
            train = pc.equal(rows["split"], "train")
            rows = rows if train.true_count == len(rows) else rows.filter(train)
            if len(rows):
                yield _prompts(path, rows, embedded)


def _prompts(path: Path, rows: pa.RecordBatch, embedded: bool) -> Prompts:
    prompt_hash_N = rows["prompt_hash"].to_numpy()
    count_N2 = np.stack([rows["rejected"].to_numpy(), rows["chosen"].to_numpy()], axis=1).astype(np.float64)
    embedding_ND = embeddings(rows) if embedded else np.empty((len(rows), 0), dtype=np.float32)
    if not np.isfinite(np.einsum("nd,nd->n", embedding_ND, embedding_ND)).all():
        raise DataError(
            f"{path}: the embedding of a prompt holds NaN, infinite or huge numbers, so prompts cannot be compared. "
            "Score with another reference model or dtype, or set scoring.matching: off."
        )
    return Prompts(embedding_ND, prompt_hash_N, count_N2)


def embeddings(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """The embedding column as (N, D) float32."""
    column = rows["embedding"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(column.flatten()).reshape(len(column), -1)


def features(embedding_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """(N, E) float32: centred (the chat template's constant part goes), of unit length, and a 1 for the intercept.

    Raises DataError on another width than the mean's.
    """
    if embedding_ND.shape[1] != len(mean_D):
        raise DataError(
            f"the matching classifier is for embeddings of width {len(mean_D)}, these have {embedding_ND.shape[1]}. "
            "Use a classifier that was fitted on the same embedding, or leave scoring.classifier out."
        )
    features_NE = np.empty((len(embedding_ND), len(mean_D) + 1), dtype=np.float32)
    centred_ND = np.subtract(embedding_ND, mean_D.astype(np.float32), out=features_NE[:, :-1])
    length_N = np.sqrt(np.einsum("nd,nd->n", centred_ND, centred_ND))
    centred_ND /= np.maximum(length_N, np.float32(1e-12))[:, None]
    features_NE[:, -1] = 1.0
    return features_NE


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
    """The objective of all models and its gradient, each at its own point: what the exact fit is made of."""

    problem: FoldOut
    mean_D: np.ndarray
    point_EK: np.ndarray

    def __call__(self, path: Path) -> Terms:
        total = Terms(np.zeros(self.point_EK.shape[1]), np.zeros_like(self.point_EK))
        for block in train_prompts(path):
            features_NE = features(block.embedding_ND, self.mean_D).astype(np.float64)
            fold_N = fold_of(block.prompt_hash_N)
            total = total + self.problem.terms(self.point_EK, features_NE, block.count_N2, fold_N)
        return total


def smallest_of(hashes: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest, in no order."""
    return hashes if len(hashes) <= count else np.partition(hashes, count - 1)[:count]


def _columns(block: Prompts) -> tuple[np.ndarray, ...]:
    return block.embedding_ND, block.prompt_hash_N, block.count_N2
