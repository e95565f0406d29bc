"""A canary as a trial: thumbs on the candidate and on prod since it began, and what the policy makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from bco_ray.config.gate import CanaryPolicy
from bco_ray.storage.aliases import CANDIDATE, PROD, Aliases
from bco_ray.storage.registry import Registry
from bco_ray.storage.sequential import Thumbs, difference_interval
from bco_ray.storage.thumbs import thumbs_since

CONFIDENCE = 0.95
"""Where no policy says otherwise."""

_DAY_SECONDS = 86400.0

Verdict = Literal["promote", "end", "wait"]


@dataclass(frozen=True)
class Trial:
    """`since`: unix seconds; from when versions and share were what they are now. `policy`: the candidate's, if it has
    one. `generation`: of the name's aliases when this was found.
    """

    name: str
    candidate: int
    prod: int
    since: float
    generation: int
    on_candidate: Thumbs
    on_prod: Thumbs
    policy: CanaryPolicy | None

    @property
    def confidence(self) -> float:
        """Of the interval."""
        return self.policy.confidence if self.policy else CONFIDENCE

    @property
    def difference(self) -> tuple[float, float]:
        """Bounds of the candidate's up-rate less that of prod, valid whenever they are looked at."""
        return difference_interval(self.on_candidate, self.on_prod, self.confidence)

    def verdict(self, now: float) -> tuple[Verdict, str]:
        """What the policy says to do, and why."""
        policy, (low, high) = self.policy, self.difference
        if policy is None:
            return "wait", "there is no policy"
        seen = f"{self.on_candidate.votes} and {self.on_prod.votes} votes"
        found = f"up-rate of the candidate less that of prod in [{low:.3f}, {high:.3f}] after {seen}"
        if min(self.on_candidate.votes, self.on_prod.votes) >= policy.min_votes:
            if policy.promote_at is not None and low > policy.promote_at:
                return "promote", f"canary: {found}, above {policy.promote_at:g}"
            if policy.rollback_at is not None and high < policy.rollback_at:
                return "end", f"canary: {found}, below {policy.rollback_at:g}"
        if policy.max_days is not None and now - self.since > policy.max_days * _DAY_SECONDS:
            return "end", f"canary: undecided after {policy.max_days:g} days, {found}"
        return "wait", found

    def as_json(self) -> dict[str, Any]:
        """As routes and the command line show it."""
        sides = ((self.candidate, self.on_candidate), (self.prod, self.on_prod))
        candidate, prod = (
            {"model": f"{self.name}/{version}", "ups": t.ups, "downs": t.downs, "up_rate": t.up_rate}
            for version, t in sides
        )
        low, high = self.difference
        return {
            "candidate": candidate, "prod": prod, "since": int(self.since), "difference": {"low": low, "high": high},
            "confidence": self.confidence, "automatic": self.policy is not None,
        }  # fmt: skip


class Trials:
    """Of the names in a registry, by the votes in a feedback log."""

    def __init__(self, registry: Registry, log: sa.Engine) -> None:
        self._registry = registry
        self._log = log

    def of(self, name: str) -> Trial | None:
        """None if no canary of it runs against a version that is prod. Raises StorageError."""
        state = self._registry.state(name)
        candidate, prod = state.aliases.get(CANDIDATE), state.aliases.get(PROD)
        if not state.percent or candidate is None or prod is None or candidate == prod:
            return None
        since = began(state)
        thumbs = thumbs_since(self._log, (f"{name}/{candidate}", f"{name}/{prod}"), since, state.percent)
        policy = self._registry.gates(name).policy(candidate)
        return Trial(
            name=name,
            candidate=candidate,
            prod=prod,
            since=since,
            generation=state.generation,
            on_candidate=thumbs[f"{name}/{candidate}"],
            on_prod=thumbs[f"{name}/{prod}"],
            policy=policy.canary if policy else None,
        )


def began(state: Aliases) -> float:
    """When the canary was given its share, or the last change of one of both versions, whichever is later.

    Votes under another share are no part of it: if they were added up while all people's moods change, the version that
    more of them met in a good mood would look better (Simpson's paradox).
    """
    begun = 0.0
    for entry in state.history:
        if entry.get("alias") in (CANDIDATE, PROD) or entry.get("canary"):
            begun = float(entry["at"])
    return begun
