"""Summaries of many values in constant memory that merge: a histogram, heavy keys, and a sample of keys.

All hold whole numbers and text only, so a round trip through JSON loses nothing and sums do not depend on order.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, islice

from pydantic import BaseModel, ConfigDict, Field

_STEP = math.log(1.05)
_BINS_PER_BAR = 5
_HASH_SPACE = 2**64

Votes = tuple[int, int]
"""Thumbs-up and thumbs-down of one key."""


class Sketch(BaseModel):
    """A value that never changes; `model_dump(mode="json")` is its state."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Histogram(Sketch):
    """How often values >= 0 occurred, in bins 5 % wide: bin -1 holds 0, bin i the numbers from 1.05^i on."""

    bins: dict[int, int] = Field(default_factory=dict)
    total: int = 0
    least: int = 0
    greatest: int = 0

    @classmethod
    def of(cls, values: Iterable[int]) -> Histogram:
        """Raises ValueError on a negative value."""
        counts = Counter(values)
        if not counts:
            return cls()
        bins: Counter[int] = Counter()
        for value, count in counts.items():
            bins[_bin_of(value)] += count
        total = sum(value * count for value, count in counts.items())
        return cls(bins=dict(bins), total=total, least=min(counts), greatest=max(counts))

    def merge(self, other: Histogram) -> Histogram:
        if not (self.bins and other.bins):
            return self if self.bins else other
        return Histogram(
            bins=dict(sorted((Counter(self.bins) + Counter(other.bins)).items())),
            total=self.total + other.total,
            least=min(self.least, other.least),
            greatest=max(self.greatest, other.greatest),
        )

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    @property
    def mean(self) -> float | None:
        """Exact; None of none."""
        return self.total / self.count if self.bins else None

    def quantile(self, q: float) -> int | None:
        """The value below or at which a share q lies, within 3 % (exact below 20 and at both ends); None of none."""
        if not self.bins:
            return None
        places = sorted(self.bins)
        below = list(accumulate(self.bins[place] for place in places))
        rank = min(max(math.ceil(q * below[-1]), 1), below[-1])
        place = places[bisect.bisect_left(below, rank)]
        middle = 0 if place < 0 else round(math.exp((place + 0.5) * _STEP))
        return min(max(middle, self.least), self.greatest)

    def bars(self) -> list[tuple[int, int]]:
        """(lower edge, count) of bars five bins (28 %) wide, without the empty ones; for drawing."""
        bars: Counter[int] = Counter()
        for place, count in self.bins.items():
            bars[0 if place < 0 else math.ceil(math.exp(place // _BINS_PER_BAR * _BINS_PER_BAR * _STEP))] += count
        return sorted(bars.items())


class HeavyKeys(Sketch):
    """Votes of the keys with most of them (Misra-Gries, mergeable as in Agarwal et al. 2012).

    Exact, in any order of merging, while there are at most `limit` distinct keys. Beyond that rare keys are let go,
    which ones depends on the order; a key with more than 1/limit of all votes always stays and lacks at most that many.
    """

    limit: int
    held: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    """Ups, downs, and how many of these have been spent on making room: a key without unspent votes goes."""
    all_votes: Votes = (0, 0)

    @classmethod
    def of(cls, counts: Mapping[str, Votes], limit: int) -> HeavyKeys:
        held = {key: (ups, downs, 0) for key, (ups, downs) in counts.items()}
        return cls(limit=limit, held=held, all_votes=_total(counts.values()))._trimmed()

    def merge(self, other: HeavyKeys) -> HeavyKeys:
        held = dict(self.held)
        for key, (ups, downs, spent) in other.held.items():
            mine = held.get(key, (0, 0, 0))
            held[key] = (mine[0] + ups, mine[1] + downs, mine[2] + spent)
        return HeavyKeys(limit=self.limit, held=held, all_votes=_total([self.all_votes, other.all_votes]))._trimmed()

    def heaviest(self, count: int | None = None) -> list[tuple[str, Votes]]:
        """The keys with most votes first; equal ones in the order of their text."""
        order = sorted(self.held.items(), key=lambda item: (-item[1][0] - item[1][1], item[0]))
        return [(key, (ups, downs)) for key, (ups, downs, _) in order[:count]]

    def _trimmed(self) -> HeavyKeys:
        if len(self.held) <= self.limit:
            return self
        cut = heapq.nlargest(self.limit + 1, (up + down - spent for up, down, spent in self.held.values()))[-1]
        held = {key: (up, down, spent + cut) for key, (up, down, spent) in self.held.items() if up + down - spent > cut}
        return self.model_copy(update={"held": held})


class KeySample(Sketch):
    """Votes of the `limit` keys whose hashes are smallest (KMV): exact for these, all keys while there are no more.

    The same for every order of merging. The keys themselves are not kept.
    """

    limit: int
    votes: dict[int, int] = Field(default_factory=dict)
    overflown: bool = False

    @classmethod
    def of(cls, counts: Mapping[str, int], limit: int) -> KeySample:
        return cls(limit=limit, votes={_hash(key): count for key, count in counts.items()})._trimmed()

    def merge(self, other: KeySample) -> KeySample:
        return self.model_copy(
            update={
                "votes": dict(Counter(self.votes) + Counter(other.votes)),
                "overflown": self.overflown or other.overflown,
            }
        )._trimmed()

    def distinct(self) -> int:
        """How many keys there are: exact unless `overflown`, else with a standard error of 1/sqrt(limit)."""
        if not self.overflown:
            return len(self.votes)
        return round((self.limit - 1) / ((max(self.votes) + 1) / _HASH_SPACE))

    def spread(self) -> Histogram:
        """How many votes a key has, over the sampled keys."""
        return Histogram.of(self.votes.values())

    def _trimmed(self) -> KeySample:
        if len(self.votes) <= self.limit:
            return self
        smallest = dict(islice(sorted(self.votes.items()), self.limit))
        return self.model_copy(update={"votes": smallest, "overflown": True})


def _bin_of(value: int) -> int:
    if value < 0:
        raise ValueError(f"a histogram holds numbers >= 0, got {value}")
    return math.floor(math.log(value) / _STEP) if value else -1


def _total(votes: Iterable[Votes]) -> Votes:
    ups, downs = 0, 0
    for up, down in votes:
        ups, downs = ups + up, downs + down
    return ups, downs


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
