"""List columns of Arrow tables, row by row and without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class Ragged:
    """A list column's rows as views into its one flat array."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = column.combine_chunks()
        self._offsets = lists.offsets.to_numpy()
        self._flat = lists.values.to_numpy(zero_copy_only=False)

    @property
    def lengths(self) -> list[int]:
        """Of each row."""
        return [int(n) for n in np.diff(self._offsets)]

    @property
    def sums(self) -> np.ndarray:
        """Of each row's values, (N,), int64."""
        below = np.concatenate([[0], np.cumsum(self._flat, dtype=np.int64)])
        return np.asarray(below[self._offsets[1:]] - below[self._offsets[:-1]])

    def __getitem__(self, row: int) -> np.ndarray:
        values: np.ndarray = self._flat[self._offsets[row] : self._offsets[row + 1]]
        return values
