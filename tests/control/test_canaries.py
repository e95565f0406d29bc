"""Canaries that end by themselves, through the gate and with a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config.gate import CanaryPolicy
from bco_ray.control.audit import AuditLog
from bco_ray.control.canaries import Canaries
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.storage.sequential import Thumbs
from bco_ray.storage.trials import Trial, Trials
from bco_ray.testing.evaluations import made_evaluation

GOOD, BAD = Thumbs(190, 10), Thumbs(20, 180)


@dataclass
class Site:
    registry: Registry
    audit: AuditLog
    thumbs: tuple[Thumbs, Thumbs] = (Thumbs(), Thumbs())
    asked: list[str] = field(default_factory=list)

    def of(self, name: str) -> Trial | None:
        """As `Trials` finds it, with these thumbs."""
        self.asked.append(name)
        state = self.registry.state(name)
        candidate, prod = state.aliases.get("candidate"), state.aliases.get("prod")
        if not state.percent or candidate in (None, prod):
            return None
        policy = self.registry.gates(name).policy(candidate)
        return Trial(name, candidate, prod or 0, 0.0, state.generation, *self.thumbs, policy and policy.canary)

    def look(self) -> None:
        Canaries(self.registry, self, self.audit, clock=lambda: 86400.0).run_once()  # type: ignore[arg-type]

    def done(self, project: str = "default") -> list[tuple[str, str, dict[str, Any]]]:
        entries, _ = self.audit.list(project)
        return [(entry.actor, entry.action, entry.facts) for entry in reversed(entries)]


def site(tmp_path: Path, gate: dict[str, Any] | None, project: str | None = None) -> Site:
    """bot/1 is prod, bot/2 its canary, made by a job of `project`."""
    (tmp_path / "m").mkdir()
    registry = Registry(tmp_path)
    for run, policy in (("a", None), ("b", gate)):
        registry.register("bot", tmp_path / "m", {"run": run, "gate": policy, "project": project})
    registry.promote("bot", 1)
    registry.promote("bot", 2, "candidate")
    registry.set_canary("bot", 10)
    return Site(registry, AuditLog(open_database(tmp_path)))


def test_the_better_one_is_promoted_and_the_canary_ends(tmp_path: Path) -> None:
    found = site(tmp_path, {"canary": {}})
    found.look()
    assert found.registry.aliases("bot")["prod"] == 1
    found.thumbs = (GOOD, BAD)
    found.look()
    state = found.registry.state("bot")
    assert (state.aliases["prod"], state.percent) == (2, 0)
    assert "above 0" in state.history[-2]["because"]
    assert [(actor, action) for actor, action, _ in found.done()] == [
        ("canary", "model.promote"), ("canary", "model.canary"),
    ]  # fmt: skip
    assert found.done()[0][2] == {"alias": "prod", "version": 2, "was": 1, "because": state.history[-2]["because"]}
    found.look()
    assert len(found.registry.history("bot")) == len(state.history)
    assert found.registry.rollback("bot") == (1, 2)


def test_the_worse_one_is_taken_back(tmp_path: Path) -> None:
    found = site(tmp_path, {"canary": {}})
    found.thumbs = (BAD, GOOD)
    found.look()
    state = found.registry.state("bot")
    assert (state.aliases, state.percent) == ({"prod": 1, "candidate": 2}, 0)
    assert "below 0" in state.history[-1]["because"]
    assert [(action, facts["percent"]) for _, action, facts in found.done()] == [("model.canary", 0)]


@pytest.mark.parametrize("gate", [None, {"auc": {"min": 0.1}}, {"canary": {"promote_at": None}}])
def test_without_a_policy_nobody_moves_anything(tmp_path: Path, gate: dict[str, Any] | None) -> None:
    found = site(tmp_path, gate)
    found.thumbs = (GOOD, BAD)
    found.look()
    assert found.registry.state("bot").percent == 10
    assert found.done() == []


def test_a_winner_still_has_to_pass_its_gate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = site(tmp_path, {"auc": {"min": 0.55}, "canary": {}})
    found.thumbs = (GOOD, BAD)
    canaries = Canaries(found.registry, found, found.audit, clock=lambda: 86400.0)  # type: ignore[arg-type]
    canaries.run_once()
    canaries.run_once()
    assert found.registry.aliases("bot")["prod"] == 1
    assert caplog.text.count("won and is not promoted") == 1
    found.registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    canaries.run_once()
    assert found.registry.aliases("bot")["prod"] == 2


def test_one_that_died_between_the_two_moves_is_finished(tmp_path: Path) -> None:
    found = site(tmp_path, {"canary": {}})
    found.registry.promote("bot", 2)
    found.look()
    assert found.registry.state("bot").percent == 0


@pytest.mark.parametrize("thumbs", [(GOOD, BAD), (BAD, GOOD)], ids=["promote", "end"])
@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda registry: registry.promote("bot", 1, "spare"),
        lambda registry: registry.set_canary("bot", 0),
        lambda registry: registry.promote("bot", 1, "candidate"),
    ],
    ids=["another name", "the share", "the candidate"],
)
def test_what_changed_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thumbs: Any, meanwhile: Any
) -> None:
    """While the votes are read an operator moves something: what they say is of what was before."""
    found = site(tmp_path, {"canary": {}})
    found.thumbs = thumbs
    stale = found.of("bot")
    meanwhile(found.registry)
    before = found.registry.state("bot")
    monkeypatch.setattr(found, "of", lambda _: stale)
    found.look()
    assert found.registry.state("bot") == before
    assert found.done() == []


def test_it_is_written_down_where_the_candidate_was_made(tmp_path: Path) -> None:
    found = site(tmp_path, {"canary": {}}, "acme")
    found.thumbs = (GOOD, BAD)
    found.look()
    assert [(actor, action) for actor, action, _ in found.done("acme")] == [
        ("canary", "model.promote"), ("canary", "model.canary"),
    ]  # fmt: skip
    assert found.done() == []


def test_one_that_cannot_be_read_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = site(tmp_path, {"canary": {}})
    found.registry.register("also", tmp_path / "m", {"run": "z"})
    real = found.of

    def of(name: str) -> Trial | None:
        if name == "also":
            raise StorageError("torn")
        return real(name)

    monkeypatch.setattr(found, "of", of)
    found.thumbs = (BAD, GOOD)
    found.look()
    assert found.registry.state("bot").percent == 0


def test_on_a_real_log_too(tmp_path: Path) -> None:
    found = site(tmp_path, {"canary": {}})
    trials = Trials(found.registry, FeedbackLog.open(tmp_path).engine)
    Canaries(found.registry, trials, found.audit).run_once()
    assert trials.of("bot").policy == CanaryPolicy()  # type: ignore[union-attr]
    assert found.registry.state("bot").percent == 10
