"""Rows by their place in the plan; the most recently used shards stay decoded in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bco_ray.objective import SourceOffsets, Units
from bco_ray.storage import parquet
from bco_ray.storage.ragged import Ragged
from bco_ray.storage.scored import ScoredManifest, pair_places
from bco_ray.training.plan import RowRef, ShardCounts

_COLUMNS = ["input_ids", "completion_mask", "reference_logp", "label", "weight", "split", "prompt_hash"]


@dataclass(frozen=True)
class Row:
    """One train row in memory. `offset`: by how much its delta lies below the one delta."""

    input_ids: np.ndarray
    completion_mask: np.ndarray
    reference_logp: float
    label: bool
    weight: float
    offset: float = 0.0

    @property
    def prompt_length(self) -> int:
        """Tokens before the first completion token."""
        return int(self.completion_mask.argmax()) if self.completion_mask.any() else len(self.completion_mask)

    @property
    def scored_tokens(self) -> int:
        """Completion tokens that have a prediction."""
        return int(self.completion_mask[1:].sum())


class _Rows:
    """A shard's train rows of one label."""

    def __init__(self, table: pa.Table, *, label: bool, offsets: SourceOffsets | None) -> None:
        rows = table.filter(pc.equal(table["label"], label))
        self._ids, self._masks = Ragged(rows["input_ids"]), Ragged(rows["completion_mask"])
        self._logps, self._weights = rows["reference_logp"].to_numpy(), rows["weight"].to_numpy()
        self._label = label
        self._offsets = None if offsets is None else [offsets.of(source) for source in rows["source"].to_pylist()]
        self.prompt_hashes: np.ndarray = rows["prompt_hash"].to_numpy()

    def __getitem__(self, place: int) -> Row:
        logp, weight = float(self._logps[place]), float(self._weights[place])
        offset = self._offsets[place] if self._offsets else 0.0
        return Row(self._ids[place], self._masks[place], logp, self._label, weight, offset)


class _Shard:
    def __init__(self, path: Path, offsets: SourceOffsets | None) -> None:
        table = parquet.read_table(path, columns=_COLUMNS if offsets is None else [*_COLUMNS, "source"])
        train = table.filter(pc.equal(table["split"], "train"))
        self.rows = {label: _Rows(train, label=label, offsets=offsets) for label in (True, False)}
        self.pairs = pair_places(self.rows[True].prompt_hashes, self.rows[False].prompt_hashes)


class ShardReader:
    """`units`: what one reference of the plan stands for (see `objective.losses.Units`). `offsets`: see `Row`."""

    def __init__(
        self,
        directory: Path,
        manifest: ScoredManifest,
        *,
        units: Units = "rows",
        cached_shards: int,
        offsets: SourceOffsets | None = None,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.units = units
        self._offsets = offsets
        self._cached_shards = max(1, cached_shards)
        self._cache: OrderedDict[int, _Shard] = OrderedDict()

    @property
    def counts(self) -> tuple[ShardCounts, ...]:
        """Units by shard and label, from the manifest; pairs and lone ups count as chosen."""
        of = {"chosen": "train_chosen", "pairs": "train_pairs"}
        if self.units == "rows":
            return tuple(ShardCounts(s.train_chosen, s.train_rejected) for s in self.manifest.shards)
        return tuple(ShardCounts(getattr(s, of[self.units]), 0) for s in self.manifest.shards)

    def unit(self, ref: RowRef) -> list[Row]:
        """Its row, or a pair's two: the chosen one first, both with the smaller of their weights."""
        shard = self._shard(ref.shard)
        if self.units != "pairs":
            return [shard.rows[ref.label][ref.place]]
        pair = [shard.rows[label][place] for label, place in zip((True, False), shard.pairs[ref.place], strict=True)]
        return [replace(row, weight=min(row.weight for row in pair)) for row in pair]

    def _shard(self, number: int) -> _Shard:
        if number not in self._cache:
            self._cache[number] = _Shard(self.directory / self.manifest.shards[number].file, self._offsets)
            if len(self._cache) > self._cached_shards:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]
