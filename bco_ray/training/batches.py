"""A window's rows to this worker's micro-batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bco_ray.models.batching import pad, token_budget_batches
from bco_ray.storage.scored import ScoredManifest
from bco_ray.training.plan import RowRef, ShardCounts, WindowPlan


@dataclass(frozen=True)
class Row:
    """One train row in memory."""

    input_ids: np.ndarray
    completion_mask: np.ndarray
    reference_logp: float
    label: bool
    weight: float


@dataclass(frozen=True)
class MicroBatch:
    """One forward/backward. B rows, T tokens; `valid_B` False marks the filler row of a worker with nothing to do."""

    input_ids_BT: Tensor
    completion_mask_BT: Tensor
    reference_logps_B: Tensor
    labels_B: Tensor
    weights_B: Tensor
    valid_B: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """All tensors on `device`."""
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def tokens(self) -> int:
        """Positions computed, padding included."""
        return self.input_ids_BT.numel()


class ShardReader:
    """Rows by reference; the most recently used shards stay decoded in memory."""

    def __init__(self, directory: Path, manifest: ScoredManifest, *, cached_shards: int) -> None:
        self.directory = directory
        self.manifest = manifest
        self._cached_shards = max(1, cached_shards)
        self._cache: OrderedDict[int, dict[bool, pa.Table]] = OrderedDict()

    @property
    def counts(self) -> tuple[ShardCounts, ...]:
        """Train rows by shard, from the manifest."""
        return tuple(ShardCounts(s.train_chosen, s.train_rejected) for s in self.manifest.shards)

    def row(self, ref: RowRef) -> Row:
        """One row."""
        values = self._shard(ref.shard)[ref.label].slice(ref.place, 1).to_pylist()[0]
        return Row(
            np.asarray(values["input_ids"], dtype=np.int64),
            np.asarray(values["completion_mask"], dtype=bool),
            values["reference_logp"],
            values["label"],
            values["weight"],
        )

    def lengths(self, refs: Sequence[RowRef]) -> list[int]:
        """Tokens of each row."""
        return [self._shard(r.shard)[r.label]["n_tokens"][r.place].as_py() for r in refs]

    def _shard(self, number: int) -> dict[bool, pa.Table]:
        if number not in self._cache:
            self._cache[number] = self._read(number)
            if len(self._cache) > self._cached_shards:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _read(self, number: int) -> dict[bool, pa.Table]:
        columns = ["input_ids", "completion_mask", "reference_logp", "label", "weight", "n_tokens", "split"]
        table = pq.read_table(self.directory / self.manifest.shards[number].file, columns=columns)
        train = table.filter(pc.equal(table["split"], "train"))
        return {label: train.filter(pc.equal(train["label"], label)).combine_chunks() for label in (True, False)}


def share_out(lengths: Sequence[int], workers: int, max_tokens: int) -> list[list[list[int]]]:
    """For each worker its micro-batches as lists of row indices: similar lengths together, costs balanced.

    Every worker gets the same number of micro-batches (some may be empty), because gradient reduction is collective.
    Depends on the lengths only, so every worker computes the same answer without talking.
    """
    batches = token_budget_batches(lengths, max_tokens)
    rounds = -(-len(batches) // workers)
    batches += [[] for _ in range(rounds * workers - len(batches))]
    shares: list[list[list[int]]] = [[] for _ in range(workers)]
    for start in range(0, len(batches), workers):
        group = batches[start : start + workers]
        for worker, batch in enumerate(group if (start // workers) % 2 == 0 else reversed(group)):
            shares[worker].append(batch)
    return shares


def micro_batches(
    reader: ShardReader, window: WindowPlan, *, rank: int, workers: int, max_tokens: int
) -> list[MicroBatch]:
    """The micro-batches that worker `rank` computes for `window`; at least one, the same number on every worker."""
    shares = share_out(reader.lengths(window.rows), workers, max_tokens)
    return [assemble([reader.row(window.rows[i]) for i in share]) for share in shares[rank]]


def assemble(rows: Sequence[Row]) -> MicroBatch:
    """Rows to padded tensors; no rows give one filler row with valid=0, which changes nothing but is computed.

    A row of weight 0 (an erased one is left as such) is not valid either: it must not move the reward shift.
    """
    if not rows:
        return _filler()
    ids_BT, mask_BT = pad([r.input_ids for r in rows], [r.completion_mask for r in rows])
    return MicroBatch(
        ids_BT,
        mask_BT,
        torch.tensor([r.reference_logp for r in rows], dtype=torch.float32),
        torch.tensor([r.label for r in rows]),
        torch.tensor([r.weight for r in rows], dtype=torch.float32),
        torch.tensor([r.weight > 0 for r in rows]),
    )


def _filler() -> MicroBatch:
    no, ids = torch.zeros(1, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64)
    return MicroBatch(ids, torch.tensor([[False, True]]), torch.zeros(1), no, torch.ones(1), no)
