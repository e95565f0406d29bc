"""Canaries that end by themselves: promoted once people's thumbs say so, taken back once they say the opposite."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bco_ray.control.audit import AuditLog
from bco_ray.errors import BcoError, GateError
from bco_ray.storage.aliases import CANDIDATE, PROD
from bco_ray.storage.registry import EVERYBODYS, Registry
from bco_ray.storage.trials import Trial, Trials
from bco_ray.telemetry import logger

_ACTOR = "canary"


class Canaries:
    """Looks at those whose candidate's gate has a policy for it. One that cannot be read keeps no other waiting."""

    def __init__(
        self, registry: Registry, trials: Trials, audit: AuditLog, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry = registry
        self._trials = trials
        self._audit = audit
        self._clock = clock
        self._refused: dict[str, str] = {}

    def run_once(self) -> None:
        """Reads the votes since each canary began."""
        for name in self._registry.names():
            try:
                self._look(name)
            except (BcoError, OSError) as error:
                logger.error("the canary of %s: %s", name, error)

    def _look(self, name: str) -> None:
        trial = self._trials.of(name)
        if trial is None:
            return self._end_of_promoted(name)
        verdict, why = trial.verdict(self._clock())
        if verdict == "promote":
            self._promote(trial, why)
        elif verdict == "end":
            self._end(name, trial.candidate, trial.generation, why)
        return None

    def _promote(self, trial: Trial, why: str) -> None:
        """What its gate refuses goes on as a canary, until somebody looks or its time is over."""
        name, version = trial.name, trial.candidate
        try:
            self._registry.promote(name, version, PROD, trial.prod, generation=trial.generation, because=why)
        except GateError as error:
            if self._refused.get(name) != str(error):
                self._refused[name] = str(error)
                logger.warning("the canary of %s won and is not promoted: %s", name, error)
            return
        logger.info("%s/%d is prod now: %s", name, version, why)
        facts = {"alias": PROD, "version": version, "was": trial.prod, "because": why}
        self._write_down("model.promote", name, version, **facts)
        self._end_of_promoted(name)

    def _end_of_promoted(self, name: str) -> None:
        """Also of one whose promoter died before this."""
        state = self._registry.state(name)
        candidate = state.aliases.get(CANDIDATE)
        if not state.percent or candidate is None or candidate != state.aliases.get(PROD):
            return
        policy = self._registry.gates(name).policy(candidate)
        if policy is not None and policy.canary is not None:
            self._end(name, candidate, state.generation, "canary: it is prod now")

    def _end(self, name: str, candidate: int, generation: int, why: str) -> None:
        self._registry.set_canary(name, 0, generation=generation, because=why)
        logger.info("the canary of %s has ended: %s", name, why)
        self._write_down("model.canary", name, candidate, percent=0, because=why)

    def _write_down(self, action: str, name: str, candidate: int, **facts: Any) -> None:
        """In the project whose job made the candidate."""
        project = self._registry.get(name, candidate).lineage.get("project") or EVERYBODYS
        self._audit.record(project=project, actor=_ACTOR, action=action, target=name, **facts)
