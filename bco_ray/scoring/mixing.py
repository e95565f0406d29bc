"""How the votes of a round are mixed: which older ones are drawn, and what a vote counts by its age and its author.

Older votes are drawn by priority (Duffield, Lund and Thorup, JACM 54(6), 2007): a vote of weight w gets w / u, u from
a hash of its id, and those of the highest priority are taken. A vote's chance falls with its age then, and a drawn
one counts max(w, threshold): age counts once, in the chance or in the weight.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY_SECONDS = 86_400
BINS_PER_DOUBLING = 1024
"""Of priorities: what is drawn is as many as asked for, and at most those of one more bin (a vote in a thousand)."""

COLUMNS = ("file", "position", "id", "label", "model", "weight", "prompt_hash", "created_at", "updated_at")
"""Of settled rows those that the mixture depends on."""


@dataclass(frozen=True)
class Mixing:
    """What is asked for.

    `older`: which share of the votes shall be from `older_files`, as far as there are so many. `half_life_days`: after
    so many a vote counts half. `off_policy_weight`: what a vote counts that is not known to be on an answer of
    `policy` (None: the model has no name in a log). `salt`: of the draw, another one in every round.
    """

    older: float = 0.0
    older_files: frozenset[str] = frozenset()
    half_life_days: float | None = None
    off_policy_weight: float = 1.0
    policy: str | None = None
    salt: str = ""

    @property
    def draws(self) -> bool:
        """Whether some votes may be left out."""
        return self.older > 0 and bool(self.older_files)

    @property
    def weighs(self) -> bool:
        """Whether votes may count differently."""
        return self.half_life_days is not None or self.off_policy_weight != 1

    def is_older(self, rows: pa.Table) -> np.ndarray:
        """(N,) bool."""
        found: np.ndarray = pc.is_in(rows["file"], pa.array(sorted(self.older_files), pa.string())).to_numpy()
        return found

    def is_own(self, rows: pa.Table) -> np.ndarray:
        """(N,) bool: votes on answers of the policy itself."""
        found: np.ndarray = pc.fill_null(pc.equal(rows["model"], pa.scalar(self.policy, pa.string())), False).to_numpy()
        return found


@dataclass(frozen=True)
class Mixture:
    """What came of it for one log. `newest`: unix time of its last vote. `least_bin`: of an older vote that is drawn;
    None: all are. The means of both classes' factors over their train rows, by which they are divided.
    """

    mixing: Mixing = Mixing()
    newest: float = 0.0
    least_bin: int | None = None
    chosen_mean: float = 1.0
    rejected_mean: float = 1.0

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
        """(SETTLED rows that are in it, with their weights; the others as they fit schema.QUARANTINE)."""
        drawn_N = self.drawn(rows)
        detail = "an older vote that this round did not draw (rounds.older)"
        left_out = [
            {**place, "reason": "not_drawn", "detail": detail, "raw": b""}
            for place in rows.select(["file", "position"]).filter(pa.array(~drawn_N)).to_pylist()
        ]
        rows = rows.filter(pa.array(drawn_N)) if left_out else rows
        return (self._weighted(rows) if self.mixing.weighs else rows), left_out

    def drawn(self, rows: pa.Table) -> np.ndarray:
        """(N,) bool: every vote of the round, and those of the older ones that are high enough."""
        if not self.mixing.draws or self.least_bin is None:
            return np.ones(rows.num_rows, bool)
        return ~self.mixing.is_older(rows) | (bins_of(rows, self.mixing) >= self.least_bin)

    def factors(self, rows: pa.Table) -> np.ndarray:
        """(N,) what each of these drawn votes counts by age and author, not yet divided by the means."""
        mixing = self.mixing
        own_N = mixing.is_own(rows)
        factor_N = np.where(own_N, 1.0, mixing.off_policy_weight)
        if mixing.half_life_days is None:
            return factor_N
        age_N = log2_ages(times(rows, missing=self.newest), mixing.half_life_days)
        newest = self.newest / (DAY_SECONDS * mixing.half_life_days)
        factor_N *= age_factors(age_N, mixing.is_older(rows), newest=newest, least=self.least_bin)
        return factor_N

    def _weighted(self, rows: pa.Table) -> pa.Table:
        up_N = rows["label"].to_numpy(zero_copy_only=False).astype(bool)
        factor_N = self.factors(rows) / np.where(up_N, self.chosen_mean, self.rejected_mean)
        weight_N = rows["weight"].to_numpy().astype(np.float64) * factor_N
        place = rows.schema.get_field_index("weight")
        return rows.set_column(place, rows.schema.field(place), pa.array(weight_N.astype(np.float32)))


def times(rows: pa.Table, *, missing: float) -> np.ndarray:
    """(N,) unix time of each vote: of its last change, else of its making."""
    found: np.ndarray = pc.fill_null(pc.coalesce(rows["updated_at"], rows["created_at"]), missing).to_numpy()
    return found


def log2_ages(time_N: np.ndarray, half_life_days: float) -> np.ndarray:
    """log2 of what a vote counts by its time, up to a constant: one less per half-life."""
    return time_N / (DAY_SECONDS * half_life_days)


def age_factors(log2_N: np.ndarray, older_N: np.ndarray, *, newest: float, least: int | None) -> np.ndarray:
    """(N,) what votes of these ages (`log2_ages`) count, at most 1: a drawn one that was older, as much as one whose
    age alone has the priority of the least that is drawn.
    """
    threshold = -np.inf if least is None else least / BINS_PER_DOUBLING
    drawn_N = np.maximum(log2_N, threshold) - max(newest, threshold)
    return np.asarray(np.exp2(np.where(older_N, drawn_N, log2_N - newest)))


def bins_of(rows: pa.Table, mixing: Mixing) -> np.ndarray:
    """(N,) of each vote's priority on a log scale; a vote without a time is the oldest."""
    uniform_N = uniform(rows["id"].to_pylist(), mixing.salt)
    if mixing.half_life_days is None:
        return priority_bins(np.zeros(rows.num_rows), uniform_N)
    return priority_bins(log2_ages(times(rows, missing=0.0), mixing.half_life_days), uniform_N)


def priority_bins(log2_weight_N: np.ndarray, uniform_N: np.ndarray) -> np.ndarray:
    """(N,) int64: w / u, in bins of a thousandth of a doubling."""
    return np.asarray(np.floor((log2_weight_N - np.log2(uniform_N)) * BINS_PER_DOUBLING), np.int64)


def uniform(ids: Sequence[str], salt: str) -> np.ndarray:
    """(N,) in (0, 1]: the same for the same id and salt, wherever and in whatever company."""
    digests = (hashlib.sha256(f"{salt}\0{name}".encode()).digest()[:8] for name in ids)
    whole_N = np.array([int.from_bytes(digest) >> 11 for digest in digests], np.float64)
    return (whole_N + 1) / 2**53


def wanted_older(new: int, share: float) -> int:
    """How many older votes make `share` of the whole beside `new` ones."""
    return round(new * share / (1 - share))


def least_bin(counts: Mapping[int, int], wanted: int) -> int | None:
    """The bin down to which `wanted` votes are taken from the highest on; None: all there are."""
    if sum(Counter(counts).values()) <= wanted:
        return None
    taken, bins = 0, sorted(counts, reverse=True)
    least = bins[0] + 1
    for number in bins:
        if taken >= wanted:
            break
        taken, least = taken + counts[number], number
    return least
