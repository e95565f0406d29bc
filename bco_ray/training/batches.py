"""A window's rows to this worker's micro-batches: packed, balanced over workers, in the form the device wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from bco_ray.models.packing import Pack, fill_packs, lay_out
from bco_ray.training.plan import WindowPlan
from bco_ray.training.shard_reader import Row, ShardReader


@dataclass(frozen=True)
class MicroBatch:
    """One forward/backward of B rows laid end to end; `valid_B` False marks a row that counts nothing.

    `slots_B`: each row's place in the window, W (one past the end) for a filler. `offsets_B`: by how much each row's
    delta lies below the one delta.
    """

    pack: Pack
    reference_logps_B: Tensor
    labels_B: Tensor
    weights_B: Tensor
    valid_B: Tensor
    slots_B: Tensor
    offsets_B: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """All tensors on `device`."""
        return MicroBatch(
            self.pack.to(device), *(tensor.to(device, non_blocking=True) for tensor in self._row_tensors())
        )

    def pinned(self) -> MicroBatch:
        """In memory that a GPU copies from by itself."""
        return MicroBatch(self.pack.pinned(), *(tensor.pin_memory() for tensor in self._row_tensors()))

    def _row_tensors(self) -> Iterator[Tensor]:
        return (getattr(self, field.name) for field in fields(self)[1:])


@dataclass(frozen=True)
class WindowTotals:
    """The whole window over all workers, known before the first forward: the loss's denominators, and who is valid."""

    chosen: int
    rejected: int
    sft_tokens: int
    tokens: int
    labels_W: np.ndarray
    valid_W: np.ndarray


@dataclass(frozen=True)
class WindowBatches:
    """What one worker computes in one optimizer step. `mismatched`: prompts with completions of other rows (KTO)."""

    plan: WindowPlan
    totals: WindowTotals
    batches: tuple[MicroBatch, ...]
    mismatched: tuple[MicroBatch, ...] = ()

    def pinned(self) -> WindowBatches:
        """See `MicroBatch.pinned`."""
        pinned = [tuple(batch.pinned() for batch in some) for some in (self.batches, self.mismatched)]
        return replace(self, batches=pinned[0], mismatched=pinned[1])


@dataclass(frozen=True)
class Share:
    """Which worker of how many, and how many tokens one micro-batch may have."""

    rank: int
    workers: int
    max_tokens: int

    def take(self, lengths: Sequence[int]) -> list[list[int]]:
        """This worker's packs as lists of indices; every worker gets the same number, because reducing is collective.

        Depends on the lengths only, so every worker computes the same answer without talking.
        """
        return fill_packs(lengths, self.max_tokens, multiple_of=self.workers)[self.rank :: self.workers]


def window_batches(reader: ShardReader, plan: WindowPlan, share: Share, *, mismatched: bool = False) -> WindowBatches:
    """The micro-batches of `share` for the window `plan`; at least one, the same number on every worker."""
    units = [reader.unit(ref) for ref in plan.rows]
    rows = [row for unit in units for row in unit]
    first = np.cumsum([0, *(len(unit) for unit in units)])
    packs = share.take([sum(len(row.input_ids) for row in unit) for unit in units])
    slots = [[slot for i in pack for slot in range(first[i], first[i + 1])] for pack in packs]
    others = mismatch(rows) if mismatched else []
    return WindowBatches(
        plan,
        _totals(rows),
        tuple(assemble([rows[slot] for slot in some], some, len(rows)) for some in slots),
        tuple(_cut(others, share)) if mismatched else (),
    )


def assemble(rows: Sequence[Row], slots: Sequence[int], window: int) -> MicroBatch:
    """Rows to tensors; no rows give two fillers (a pair, where pairs are wanted), computed but of no influence.

    A row of weight 0 (an erased one is left as such) is not valid either: it must not move the reward shift.
    """
    if not rows:
        filler = Row(np.zeros(2, np.int64), np.array([False, True]), 0.0, label=False, weight=0.0)
        return assemble([filler] * 2, [window] * 2, window)
    return MicroBatch(
        lay_out([row.input_ids for row in rows], [row.completion_mask for row in rows]),
        torch.tensor([row.reference_logp for row in rows], dtype=torch.float32),
        torch.tensor([row.label for row in rows]),
        torch.tensor([row.weight for row in rows], dtype=torch.float32),
        torch.tensor([row.weight > 0 for row in rows]),
        torch.tensor(slots),
        torch.tensor([row.offset for row in rows], dtype=torch.float32),
    )


def mismatch(rows: Sequence[Row]) -> list[Row]:
    """Each row's prompt with the next row's completion: what KTO's reference point is estimated on (2402.01306, 4.1).

    A prompt that would make its row longer than the longest there is loses tokens on the left.
    """
    longest = max(len(row.input_ids) for row in rows)
    others = [*rows[1:], rows[0]]
    return [_joined(row, other, longest) for row, other in zip(rows, others, strict=True)]


def _joined(row: Row, other: Row, longest: int) -> Row:
    start = other.prompt_length
    prompt = row.input_ids[: row.prompt_length][-max(1, longest - (len(other.input_ids) - start)) :]
    mask = np.concatenate([np.zeros(len(prompt), bool), other.completion_mask[start:]])
    return replace(
        row,
        input_ids=np.concatenate([prompt, other.input_ids[start:]]),
        completion_mask=mask,
        reference_logp=float("nan"),
        weight=float(row.weight > 0 and other.weight > 0),
    )


def _cut(rows: Sequence[Row], share: Share) -> Iterator[MicroBatch]:
    for pack in share.take([len(row.input_ids) for row in rows]):
        yield assemble([rows[i] for i in pack], pack, len(rows))


def _totals(rows: Sequence[Row]) -> WindowTotals:
    """A row of weight 0 counts in no denominator: the loss is that of the others."""
    labels, valid = np.array([row.label for row in rows]), np.array([row.weight > 0 for row in rows])
    return WindowTotals(
        chosen=int((labels & valid).sum()),
        rejected=int((~labels & valid).sum()),
        sft_tokens=sum(row.scored_tokens for row in rows if row.label and row.weight > 0),
        tokens=sum(len(row.input_ids) for row in rows),
        labels_W=labels,
        valid_W=valid,
    )
