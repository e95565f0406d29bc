"""One reward shift per source: delta less an offset, the log odds of the source against those of the log.

Where c is the label and s the source (a product, a language), p+(s) / p-(s) is part of what BCO's margin r - delta
estimates, log p+(x, y) / p-(x, y). r must average to the reference's under every prompt, so it cannot hold it, and
bends (design: population view). A margin of r - delta + o_s holds it: o_s = log p+(s) / p-(s), a constant of the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Classes = tuple[float, float]
"""Total weight of the thumbs-up and of the thumbs-down rows."""


@dataclass(frozen=True)
class SourceOffsets:
    """By how much each source's delta lies below the one delta (nats). `other`: of all sources not named, and of none.

    Their class means have the middle 0, so the one delta is eq. 7 of rewards with them and without.
    """

    named: dict[str, float] = field(default_factory=dict)
    other: float = 0.0

    def of(self, source: str | None) -> float:
        """Of a row with that source."""
        return self.other if source is None else self.named.get(source, self.other)

    def deltas(self, delta: float) -> dict[str, float]:
        """Delta of each source that is named."""
        return {name: delta - offset for name, offset in self.named.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for strict JSON, exact to the bit."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SourceOffsets:
        """The inverse of `state_dict`."""
        return cls(**state)


def source_offsets(of_source: Mapping[str | None, Classes], *, shrinkage_rows: float, most: int) -> SourceOffsets:
    """From each source's weights per class. The `most` heaviest are named, the rest and None count as one source.

    Each is shrunk to the log as a whole, as if `shrinkage_rows` votes with the log's odds were in it: to 0 for a source
    with hardly a vote, and finite for one that lacks a class. Depends on no order. A log of one class has offsets 0.
    Raises ValueError unless shrinkage_rows is above 0 (inf: all are 0).
    """
    if not shrinkage_rows > 0:
        raise ValueError(f"shrinkage_rows must be above 0, got {shrinkage_rows}")
    names = [name for name in of_source if name is not None and sum(of_source[name]) > 0]
    named = sorted(names, key=lambda name: (-sum(of_source[name]), name))[:most]
    groups = {name: of_source[name] for name in named}
    rest = _total([of_source[name] for name in sorted(of_source.keys() - groups.keys(), key=str)])
    total = _total([*groups.values(), rest])
    if not min(total) > 0:
        return SourceOffsets(dict.fromkeys(named, 0.0))
    raw = {name: _log_odds(group, total, shrinkage_rows) for name, group in groups.items()}
    other = _log_odds(rest, total, shrinkage_rows)
    middle = _middle([(other, rest), *((raw[name], groups[name]) for name in named)], total)
    return SourceOffsets({name: offset - middle for name, offset in raw.items()}, other - middle)


def _log_odds(group: Classes, total: Classes, shrinkage_rows: float) -> float:
    """log p+(s) / p-(s), shrunk."""
    if math.isinf(shrinkage_rows):
        return 0.0
    added = shrinkage_rows / sum(total)
    return math.log((group[0] / total[0] + added) / (group[1] / total[1] + added))


def _middle(offsets: list[tuple[float, Classes]], total: Classes) -> float:
    """Half the sum of their means over thumbs-up and over thumbs-down rows."""
    sums = [sum(offset * group[kind] for offset, group in offsets) for kind in (0, 1)]
    return (sums[0] / total[0] + sums[1] / total[1]) / 2


def _total(groups: list[Classes]) -> Classes:
    return math.fsum(up for up, _ in groups), math.fsum(down for _, down in groups)
