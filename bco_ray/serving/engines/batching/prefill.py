"""Newcomers read their prompts together, in a cache of their own, a piece at a time.

    columns     prefix (known)  |  what is left to read        row 0: 4 tokens known, 5 to read
    row 0         a b c d       |    e f g h i                 row 1: none known, 3 to read
    row 1         . . . .       |    . . p q r                 the gap closes when the row joins the batch

B: rows, T: columns of a piece, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bco_ray.serving.engines.batching.kv_cache import Span
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.batching.prefix_cache import BLOCK_TOKENS, PrefixCache
from bco_ray.serving.engines.batching.row import Row

_PADDING = 1.25
"""Columns that may be computed per token that has to be: padding costs as much as tokens do."""


class Prefill:
    """Rows on their way into the batch."""

    def __init__(self, network: Network, prefixes: PrefixCache, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.cache = network.cache()
        self._network = network
        blocks = [prefixes.known(row.keys) for row in rows]
        self.known = [n * BLOCK_TOKENS for n in blocks]
        self._left = [len(row.ids) - known for row, known in zip(rows, self.known, strict=True)]
        self._columns = max(self._left)
        self._done = 0
        self._prefix = max(self.known)
        self.cache.start(len(rows), self._prefix, self._columns)
        for b, (row, n) in enumerate(zip(rows, blocks, strict=True)):
            if n:
                self.cache.write(b, self._prefix, prefixes.read(row.keys[:n]))

    def read(self, tokens: int) -> Tensor | None:
        """Read at most `tokens` (rows x columns, but one column at least); the logits_BV once all is read."""
        stop = min(self._columns, self._done + max(1, tokens // len(self.rows)))
        new_BT, counts = [], []
        for row, left in zip(self.rows, self._left, strict=True):
            pads = self._columns - left
            first = len(row.ids) - left - pads  # the token that would stand in column 0
            count = stop - max(self._done, min(stop, pads))
            new_BT.append([0] * (stop - self._done - count) + row.ids[first + stop - count : first + stop])
            counts.append(count)
        logits_BV = self._network.logits(new_BT, self.cache, counts)
        self._done = stop
        return logits_BV if stop == self._columns else None

    def spans(self, b: int) -> list[Span]:
        """Where a row's tokens are in the cache's window, once all is read."""
        end = self._prefix + self._columns
        return [(self._prefix - self.known[b], self._prefix), (end - self._left[b], end)]


def together(rows: Sequence[Row], prefixes: PrefixCache, tokens: int) -> list[Row]:
    """The first row, and those of the others that fit beside it in one piece of `tokens` with little padding.

    A row that starts with blocks that one of them is about to compute stays behind, to find them in the cache.
    """
    head, *others = rows
    group, width = [head], _left(head, prefixes)
    total = width
    claimed = set(head.keys[prefixes.known(head.keys) :])
    for row in sorted(others, key=lambda other: abs(_left(other, prefixes) - width)):
        known, left = prefixes.known(row.keys), _left(row, prefixes)
        columns = (len(group) + 1) * max(width, left)
        shared = known < len(row.keys) and row.keys[known] in claimed
        if shared or row.alone or head.alone or columns > min(tokens, _PADDING * (total + left)):
            continue
        group.append(row)
        width, total = max(width, left), total + left
        claimed.update(row.keys[known:])
    return group


def _left(row: Row, prefixes: PrefixCache) -> int:
    return len(row.ids) - BLOCK_TOKENS * prefixes.known(row.keys)
