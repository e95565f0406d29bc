"""Keys and values of rows that step together: buffers with room to spare, and a window that steps slide along.

    columns   0 . . lo . . . . . . hi . . C        every row ends at hi; what is left of it is padding
    row 0               . a b c d e                a step writes column hi of all rows and moves hi
    row 1               . . . p q r                nothing is ever concatenated

R: rows of the buffers, B: rows in use, H: heads, C: columns of the buffers, S: columns in the window, T: new tokens,
D: head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Span = tuple[int, int]
"""Columns from, to (exclusive)."""

_LEAST_COLUMNS = 64


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: heads and sizes of a key and of a value. `heads` 0: nothing."""

    heads: int
    key_size: int
    value_size: int


@dataclass
class Window:
    """What of the buffers is in use: the first `rows`, columns `lo` to `hi`."""

    rows: int = 0
    lo: int = 0
    hi: int = 0

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.hi - self.lo


class WindowLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is untyped to mypy
    """One layer's buffers, seen through the window that all layers share."""

    is_sliding = False
    is_croppable = False

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing left to do: the cache allocates."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values of T new tokens behind the window; both of the window and the new tokens (BHSD)."""
        w = self.window
        end = w.hi + key_states.shape[-2]
        self.keys[: w.rows, :, w.hi : end] = key_states
        self.values[: w.rows, :, w.hi : end] = value_states
        return self.keys[: w.rows, :, w.lo : end], self.values[: w.rows, :, w.lo : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that new tokens meet, and the first one's index."""
        return self.window.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before the new tokens."""
        return self.window.width

    def get_max_length(self) -> int:
        """None that a model needs to know."""
        return -1


class KVCache(Cache):  # type: ignore[misc]
    """`lengths` holds the number of real tokens of each row.

    Buffers grow by half (columns) and double (rows up to `max_rows`) as they must, so that rows x columns stays within
    `budget` tokens as long as what is asked for does; an eighth of the width is kept free to slide in.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], *, dtype: torch.dtype, device: torch.device, max_rows: int, budget: int
    ) -> None:
        self.window = Window()
        self.lengths: list[int] = []
        self._new = 0
        self._counts: Sequence[int] = []
        super().__init__(layers=[WindowLayer(self.window) for _ in shapes])
        self._shapes = shapes
        self._dtype, self._device = dtype, device
        self._max_rows = max_rows
        self._budget = budget
        self._pad = torch.finfo(dtype).min
        self._allocate(0, 0)

    @property
    def buffers(self) -> list[Tensor]:
        """Keys and values (RHCD) of all layers that keep any, in one order for all caches of a model."""
        kept = [layer for layer, shape in zip(self.layers, self._shapes, strict=True) if shape.heads]
        return [buffer for layer in kept for buffer in (layer.keys, layer.values)]

    @property
    def padded(self) -> bool:
        """Whether any column of the window, or of the new ones, is padding in any row."""
        return sum(self.lengths) + sum(self._counts) < self.window.rows * (self.window.width + self._new)

    def bias(self) -> Tensor:
        """What to add to the attention scores of one new token per row (B11,S+1): 0, or the least for padding."""
        w = self.window
        return self._bias_RC[: w.rows, None, None, w.lo : w.hi + self._new]

    def mask(self) -> Tensor:
        """Which columns of the window and of the new ones are tokens (B,S+T), for the model to build its masks from."""
        return self.bias()[:, 0, 0] == 0

    def start(self, rows: int, width: int, room: int) -> None:
        """Begin an empty cache with `rows` of nothing but padding, `width` columns wide, and room for more."""
        self._make_room(rows, width, room)
        self.window.rows, self.window.lo, self.window.hi = rows, self.window.hi - width, self.window.hi
        self.lengths = [0] * rows

    def open(self, new: int, counts: Sequence[int] | None = None) -> None:
        """Make room for `new` columns; a row's `counts` tokens fill the last ones of them (None: all of them)."""
        self._make_room(0, 0, new)
        w = self.window
        self._new, self._counts = new, [new] * w.rows if counts is None else counts
        self._bias_RC[: w.rows, w.hi : w.hi + new] = 0
        for row, count in enumerate(self._counts):
            if count < new:
                self._bias_RC[row, w.hi : w.hi + new - count] = self._pad

    def close(self) -> None:
        """The new columns are written and join the window."""
        self.window.hi += self._new
        self.lengths = [length + count for length, count in zip(self.lengths, self._counts, strict=True)]

    def write(self, row: int, end: int, pieces: Sequence[Tensor]) -> None:
        """Put tokens (HTD, in the order of `buffers`) of a row where they end before the window's column `end`."""
        start = self.window.lo + end - pieces[0].shape[1]
        for buffer, piece in zip(self.buffers, pieces, strict=True):
            buffer[row, :, start : self.window.lo + end] = piece
        self._bias_RC[row, start : self.window.lo + end] = 0
        self.lengths[row] += pieces[0].shape[1]

    def take(self, source: KVCache, rows: Sequence[tuple[int, Sequence[Span]]]) -> None:
        """Add rows of another cache: (row, spans of its window), put together without gaps."""
        lengths = [sum(b - a for a, b in spans) for _, spans in rows]
        self._make_room(len(rows), max(lengths), 1)
        first, lo, hi = self.window.rows, self.window.lo, self.window.hi
        self.window.rows += len(rows)
        self.window.lo = min(lo, hi - max(lengths)) if first else hi - max(lengths)
        for mine, its in zip(self.buffers, source.buffers, strict=True):
            # old contents may be infinite, and 0 times that is no padding
            mine[:first, :, self.window.lo : lo] = 0
            mine[first : self.window.rows, :, self.window.lo : hi] = 0
            for to, ((row, spans), length) in enumerate(zip(rows, lengths, strict=True), start=first):
                _copy_spans(mine[to, :, hi - length : hi], its[row, :, source.window.lo :], spans)
        self._bias_RC[:first, self.window.lo : lo] = self._pad
        self._bias_RC[first : self.window.rows, self.window.lo : hi] = self._pad
        for to, length in enumerate(lengths, start=first):
            self._bias_RC[to, hi - length : hi] = 0
        self.lengths += lengths

    def leave(self, row: int) -> None:
        """Forget a row: the last one takes its place. Rows must have no gaps."""
        w, last = self.window, self.window.rows - 1
        if row != last:
            for buffer in self.buffers:
                buffer[row, :, w.lo : w.hi] = buffer[last, :, w.lo : w.hi]
            self._bias_RC[row, w.lo : w.hi] = self._bias_RC[last, w.lo : w.hi]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        w.rows = last
        w.lo = w.hi - max(self.lengths, default=0)

    def tokens(self, row: int, start: int, stop: int) -> list[Tensor]:
        """Keys and values (HTD) of a row's tokens `start` to `stop`, counted from its first. It must have no gaps."""
        first = self.window.hi - self.lengths[row]
        return [buffer[row, :, first + start : first + stop] for buffer in self.buffers]

    def _make_room(self, rows: int, left: int, right: int) -> None:
        """See that `rows` more fit, `left` columns before the window's end and `right` behind it."""
        w = self.window
        width = max(w.width, left)
        columns = width + max(right, width // 8)
        needed = w.rows + rows
        if needed > self._rows or columns > self._columns:
            self._grow(needed, max(columns, _LEAST_COLUMNS), width)
        elif w.hi + right > self._columns or w.hi < left:
            self._slide(width)

    def _grow(self, rows: int, columns: int, hi: int) -> None:
        old, old_bias_RC, w = self.buffers, self._bias_RC, self.window
        more_rows = max(rows, min(2 * rows, self._max_rows, self._budget // columns))
        more_columns = max(columns, min(columns + columns // 2, self._budget // more_rows))
        self._allocate(more_rows, more_columns)
        for new, was in zip(self.buffers, old, strict=True):
            new[: w.rows, :, hi - w.width : hi] = was[: w.rows, :, w.lo : w.hi]
        self._bias_RC[: w.rows, hi - w.width : hi] = old_bias_RC[: w.rows, w.lo : w.hi]
        w.lo, w.hi = hi - w.width, hi

    def _slide(self, hi: int) -> None:
        """Move the window so that it ends at `hi`."""
        w = self.window
        for buffer in self.buffers:
            buffer[: w.rows, :, hi - w.width : hi] = buffer[: w.rows, :, w.lo : w.hi].clone()
        self._bias_RC[: w.rows, hi - w.width : hi] = self._bias_RC[: w.rows, w.lo : w.hi].clone()
        w.lo, w.hi = hi - w.width, hi

    def _allocate(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        for layer, shape in zip(self.layers, self._shapes, strict=True):
            layer.keys = self._filled((rows, shape.heads, columns, shape.key_size), 0)
            layer.values = self._filled((rows, shape.heads, columns, shape.value_size), 0)
        self._bias_RC = self._filled((rows, columns), self._pad)

    def _filled(self, size: tuple[int, ...], value: float) -> Tensor:
        return torch.full(size, value, dtype=self._dtype, device=self._device)


def _copy_spans(to_HSD: Tensor, from_HSD: Tensor, spans: Sequence[Span]) -> None:
    at = 0
    for start, stop in spans:
        to_HSD[:, at : at + stop - start] = from_HSD[:, start:stop]
        at += stop - start
