"""What the gates of a name's versions say together: which of them `prod` may point at, and which a bare name means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bco_ray.config.gate import GateSpec
from bco_ray.errors import StorageError
from bco_ray.storage.evaluations import Evaluations
from bco_ray.storage.gate import policy_of, refusals


@dataclass(frozen=True)
class Gates:
    """Of one name, as things stand: make another one to look again. `live`: what `prod` points at."""

    name: str
    versions: Sequence[int]
    lineage_of: Callable[[int], dict[str, Any]]
    evaluations: Evaluations
    live: int | None

    def policy(self, version: int) -> GateSpec | None:
        """Of one version. Raises StorageError if that cannot be read."""
        return policy_of(self.lineage_of(version).get("gate"), self.evaluations.latest(version))

    def refusals(self, version: int) -> list[str] | None:
        """What is against pointing `prod` at it now, [] if nothing is; None: neither it nor what is live (or while
        nothing is, one before it) has a gate.
        """
        policy = self.policy(version)
        if (policy is None or not policy.evaluates) and (gated := self._gated_before(version)):
            return [f"it has none, and {self.name}/{gated} has one: evaluate it with a spec that has a gate"]
        other = None if self.live in (None, version) else f"{self.name}/{self.live}"
        return None if policy is None else refusals(policy, self.evaluations.latest(version), other)

    def meant(self) -> int | None:
        """The version of a bare name: `prod`, or before there is one the newest that its gate lets through, if any."""
        if self.live is not None:
            return self.live
        return next((number for number in reversed(self.versions) if not self._shut(number)), None)

    def _gated_before(self, version: int) -> int | None:
        """What is live, or while nothing is an earlier version, if it has a gate with thresholds."""
        if self.live is not None:
            return self.live if self._evaluates(self.live) else None
        first = self._first_gated
        return first if first is not None and first < version else None

    @cached_property
    def _first_gated(self) -> int | None:
        return next((number for number in self.versions if self._evaluates(number)), None)

    def _evaluates(self, version: int) -> bool:
        """Whether its gate has thresholds, or cannot be read."""
        try:
            policy = self.policy(version)
        except StorageError:
            return True
        return policy is not None and policy.evaluates

    def _shut(self, version: int) -> bool:
        """What cannot be read is no pass."""
        try:
            return bool(self.refusals(version))
        except StorageError:
            return True
