"""Which rows train at which step: a seeded, stratified order that depends on the shards and the seed alone.

An epoch visits the shards in a permuted order, in pools of a bounded number of rows. Inside a pool the thumbs-up and
the thumbs-down rows are permuted separately and interleaved evenly, so that every window of consecutive rows holds
both classes in the pool's ratio to within one row. A window is `rows_per_step` consecutive rows of that sequence (the
last one of an epoch may be shorter). World size and micro-batch size are not inputs: they only decide who computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bco_ray.objective import Units

POOL_ROWS = 65_536
"""Rows held in memory at once, and the distance over which rows are mixed."""


class RowRef(NamedTuple):
    """A train row: its shard and its place among the shard's train rows of its label, in file order."""

    shard: int
    label: bool
    place: int


@dataclass(frozen=True)
class ShardCounts:
    """Train rows of one shard by label."""

    chosen: int
    rejected: int

    @property
    def rows(self) -> int:
        """Both labels."""
        return self.chosen + self.rejected


@dataclass(frozen=True)
class WindowPlan:
    """The rows of one optimizer step and where it stands in the run (all counted from 0)."""

    step: int
    epoch: int
    rows: tuple[RowRef, ...]


@dataclass(frozen=True)
class Plan:
    """All windows of a run. Raises ValueError if there is nothing to train on."""

    shards: tuple[ShardCounts, ...]
    rows_per_step: int
    epochs: int
    seed: int
    pool_rows: int = POOL_ROWS

    @property
    def rows(self) -> int:
        """Rows per epoch."""
        return sum(shard.rows for shard in self.shards)

    @property
    def steps_per_epoch(self) -> int:
        """Windows per epoch, the short last one included."""
        return -(-self.rows // self.rows_per_step)

    @property
    def total_steps(self) -> int:
        """Windows of the whole run."""
        return self.steps_per_epoch * self.epochs

    def windows(self, start: int = 0) -> Iterator[WindowPlan]:
        """Windows from step `start` on. A resumed run gets exactly the windows the first one would have got."""
        if self.rows == 0:
            raise ValueError("no train rows")
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            first = epoch * self.steps_per_epoch
            for offset, rows in enumerate(_cut(self._epoch_rows(epoch), self.rows_per_step)):
                if first + offset >= start:
                    yield WindowPlan(first + offset, epoch, rows)

    def _epoch_rows(self, epoch: int) -> Iterator[RowRef]:
        """Pools before the first wanted window are permuted and passed over: numbers only, no row is read."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        for number, pool in enumerate(self._pools(order.tolist())):
            yield from self._pool_rows(pool, np.random.default_rng([self.seed, epoch, number]))

    def _pools(self, order: Sequence[int]) -> Iterator[list[int]]:
        pool: list[int] = []
        size = 0
        for shard in order:
            if pool and size + self.shards[shard].rows > self.pool_rows:
                yield pool
                pool, size = [], 0
            pool.append(shard)
            size += self.shards[shard].rows
        yield pool

    def _pool_rows(self, pool: list[int], random: np.random.Generator) -> list[RowRef]:
        chosen = [RowRef(s, True, i) for s in pool for i in range(self.shards[s].chosen)]
        rejected = [RowRef(s, False, i) for s in pool for i in range(self.shards[s].rejected)]
        return interleave(_permuted(chosen, random), _permuted(rejected, random))


def plan_of(
    counts: Sequence[ShardCounts], units: Units, *, rows: int, epochs: int, seed: int, pool_rows: int = POOL_ROWS
) -> Plan:
    """Of a run's units, shard by shard. `rows` of a step: half as many pairs."""
    per_unit = 2 if units == "pairs" else 1
    return Plan(tuple(counts), max(1, rows // per_unit), epochs, seed, pool_rows)


def interleave(first: Sequence[RowRef], second: Sequence[RowRef]) -> list[RowRef]:
    """Both sequences in their own order, evenly mixed: each element sits at its quantile."""
    placed = [
        ((i + 0.5) / len(rows), kind, row) for kind, rows in enumerate((first, second)) for i, row in enumerate(rows)
    ]
    return [row for _, _, row in sorted(placed, key=lambda p: p[:2])]


def _permuted(rows: list[RowRef], random: np.random.Generator) -> list[RowRef]:
    return [rows[i] for i in random.permutation(len(rows))]


def _cut(rows: Iterator[RowRef], size: int) -> Iterator[tuple[RowRef, ...]]:
    window: list[RowRef] = []
    for row in rows:
        window.append(row)
        if len(window) == size:
            yield tuple(window)
            window = []
    if window:
        yield tuple(window)
