"""How much better is one up-rate than another? An interval that may be looked at after every vote.

Two streams of thumbs that arrive in any order, with up-rates p and q. For the true (p, q) the product of two mixture
likelihood ratios, Beta(a, b) against p and against q, is a martingale that starts at 1 (Robbins 1970), so it ever
reaches 1 / alpha with a chance of alpha at most (Ville 1939). The pairs where it has not make a confidence region at
all times at once, whose shadow on p - q is the interval. It is convex, so both ends are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_PRIOR = 0.5
"""a = b of the mixture (Jeffreys): close to the best width from tens of votes on."""

_STEPS = 40


@dataclass(frozen=True)
class Thumbs:
    """Votes on one version."""

    ups: int = 0
    downs: int = 0

    @property
    def votes(self) -> int:
        """Both kinds."""
        return self.ups + self.downs

    @property
    def up_rate(self) -> float | None:
        """None of no votes."""
        return self.ups / self.votes if self.votes else None


def difference_interval(new: Thumbs, old: Thumbs, confidence: float) -> tuple[float, float]:
    """Bounds of the up-rate of `new` less that of `old`; (-1, 1) before there is anything to go by.

    The chance that it is wrong at any time, however often and whenever it is looked at, is 1 - `confidence` at most.
    """
    if not new.votes or not old.votes:
        return -1.0, 1.0
    limit = -math.log(1 - confidence)
    middle = new.ups / new.votes - old.ups / old.votes

    def excluded(difference: float) -> bool:
        return _evidence_against(difference, new, old) >= limit

    low = -1.0 if not excluded(-1.0) else _edge(excluded, middle, -1.0)
    high = 1.0 if not excluded(1.0) else _edge(excluded, middle, 1.0)
    return low, high


def _evidence_against(difference: float, new: Thumbs, old: Thumbs) -> float:
    """Least log of the martingale over all pairs with that difference; convex in the rate, hence golden sections."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)

    def evidence(rate: float) -> float:
        return _log_ratio(new, rate + difference) + _log_ratio(old, rate)

    golden = (math.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if evidence(left) <= evidence(right):
            high = right
        else:
            low = left
    return evidence((low + high) / 2)


def _log_ratio(thumbs: Thumbs, rate: float) -> float:
    """log of the Beta mixture's likelihood over that of `rate`."""
    mixture = _log_beta(thumbs.ups + _PRIOR, thumbs.downs + _PRIOR) - _log_beta(_PRIOR, _PRIOR)
    return mixture - _times_log(thumbs.ups, rate) - _times_log(thumbs.downs, 1.0 - rate)


def _times_log(count: int, rate: float) -> float:
    """0 log 0 is 0; what has happened has a rate above 0."""
    if not count:
        return 0.0
    return count * math.log(rate) if rate > 0 else -math.inf


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside
