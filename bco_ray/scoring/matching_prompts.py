"""What PROMPTS files say: blocks of train prompts with their embeddings, and what is computed from those.

Shapes: N prompts of one block, D the embedding's width, E = D + 1, K models, 2 classes (down, up). A prompt with n
thumbs-up and m thumbs-down counts as n + m rows. Blocks are read a thousand prompts at a time, so that what is
computed from one stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from bco_ray.errors import DataError
from bco_ray.storage import parquet

BLOCK_ROWS = 1024
_BLOCK_ROWS_OF_COUNTS = 2**16
_COUNTS = ["split", "prompt_hash", "chosen", "rejected"]


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
    columns, block = ([*_COUNTS, "embedding"], BLOCK_ROWS) if embedded else (_COUNTS, _BLOCK_ROWS_OF_COUNTS)
    with parquet.opened(path) as file:
        for rows in file.iter_batches(block, columns=columns, use_threads=False):
            train = pc.equal(rows["split"], "train")
            rows = rows if train.true_count == len(rows) else rows.filter(train)
            if len(rows):
                yield _prompts(path, rows, embedded)


def _prompts(path: Path, rows: pa.RecordBatch, embedded: bool) -> Prompts:
    prompt_hash_N = rows["prompt_hash"].to_numpy()
    count_N2 = np.stack([rows["rejected"].to_numpy(), rows["chosen"].to_numpy()], axis=1).astype(np.float64)
    embedding_ND = embeddings(rows, path) if embedded else np.empty((len(rows), 0), dtype=np.float32)
    if not np.isfinite(np.vdot(embedding_ND, embedding_ND)):
        raise DataError(
            f"{path}: the embedding of a prompt holds NaN, infinite or huge numbers, so prompts cannot be compared. "
            "Score with another reference model or dtype, or set scoring.matching: off."
        )
    return Prompts(embedding_ND, prompt_hash_N, count_N2)


def embedding_column(embedding_ND: np.ndarray) -> pa.Array:
    """As PROMPTS keep it: each row's numbers as they lie in memory."""
    return pa.array([row_D.tobytes() for row_D in np.asarray(embedding_ND, dtype="<f4")], pa.binary())


def embeddings(rows: pa.Table | pa.RecordBatch, path: Path) -> np.ndarray:
    """The embedding column as (N, D) float32, a view of it. Raises DataError unless all rows are of one width."""
    column = rows["embedding"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(column):
        return np.empty((0, 0), dtype=np.float32)
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32, count=len(column) + 1, offset=4 * column.offset)
    sizes_N = np.diff(bounds)
    size = int(sizes_N[0])
    if column.null_count or size == 0 or size % 4 or (sizes_N != size).any():
        raise DataError(
            f"{path}: its prompts' embeddings are not all of one width, so prompts cannot be compared. The file is "
            "damaged; delete it and score again."
        )
    flat = np.frombuffer(data, dtype="<f4", count=len(column) * size // 4, offset=int(bounds[0]))
    return flat.reshape(len(column), -1)


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings about a mean (the chat template's constant part goes), at unit length, and a 1 for the intercept.

    Only the products with them are needed, so they are never divided by their lengths (N,) themselves.
    """

    centred_ND: np.ndarray
    length_N: np.ndarray

    @classmethod
    def of(cls, embedding_ND: np.ndarray, mean_D: np.ndarray, dtype: DTypeLike = np.float64) -> Features:
        """Computed and kept in `dtype`. Raises DataError on another width than the mean's."""
        if embedding_ND.shape[1] != len(mean_D):
            raise DataError(
                f"the matching classifier is for embeddings of width {len(mean_D)}, these have "
                f"{embedding_ND.shape[1]}. Use a classifier that was fitted on the same embedding, or leave "
                "scoring.classifier out."
            )
        centred_ND = embedding_ND.astype(dtype)
        centred_ND -= mean_D.astype(dtype)
        length_N = np.sqrt(np.vecdot(centred_ND, centred_ND))
        return cls(centred_ND, np.maximum(length_N, 1e-12))  # which keeps float32 as it is

    def logits(self, point_EK: np.ndarray) -> np.ndarray:
        """X w of each model (N, K)."""
        product_NK = self.centred_ND @ point_EK[:-1].astype(self.centred_ND.dtype)
        return np.asarray(product_NK / self.length_N[:, None].astype(np.float64) + point_EK[-1])

    def gradient(self, residual_NK: np.ndarray) -> np.ndarray:
        """X^T r of each model (E, K)."""
        shrunk_NK = (residual_NK / self.length_N[:, None]).astype(self.centred_ND.dtype)
        return np.vstack([self.centred_ND.T @ shrunk_NK, residual_NK.sum(axis=0)])

    def matrix(self) -> np.ndarray:
        """X itself (N, E)."""
        return np.column_stack([self.centred_ND / self.length_N[:, None], np.ones(len(self.length_N))])
