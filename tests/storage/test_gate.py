"""The gate before `prod`: all reasons are told, what is unknown does not pass, and force leaves a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bco_ray.config.gate import GateSpec
from bco_ray.errors import GateError, StorageError
from bco_ray.storage import files
from bco_ray.storage.evaluations import Evaluation
from bco_ray.storage.gate import refusals
from bco_ray.storage.registry import Registry, UnknownVersionError
from bco_ray.testing.evaluations import made_evaluation


def against(policy: dict[str, Any], evaluation: Evaluation | None, live: str | None = None) -> list[str]:
    return refusals(GateSpec.model_validate(policy), evaluation, live)


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ({"auc": {"min": 0.55}}, []),
        ({"auc": {"min": 0.61}}, ["auc: lower bound 0.6 (of 0.7), min is 0.61"]),
        ({"auc": {"min": 0.65, "bound": "value"}}, []),
        ({"auc": {"min": 0.75, "bound": "value"}}, ["auc: 0.7, min is 0.75"]),
        ({"auc": {"min": 0.75, "bound": "upper"}}, []),
        ({"kl": {"max": 2.0}}, []),
        ({"kl": {"max": 1.5}}, ["kl: upper bound 2 (of 1), max is 1.5"]),
        ({"kl": {"min": 0.1, "max": 1.5, "bound": "lower"}}, ["kl: lower bound 0 (of 1), min is 0.1"]),
        ({"margin": {"min": -9}}, ["margin: unknown, min is -9"]),
        ({"answer_tokens": {"max": 13}}, ["answer_tokens: upper bound 14 (of 12), max is 13"]),
        ({"regression": "all"}, ["regression: 1 of 2 prompts failed (hours), all must pass"]),
        ({"regression": 0.5}, []),
        ({"regression": 0.6}, ["regression: 1 of 2 prompts failed (hours), 60% must pass"]),
        ({"win_rate": {"min": 0.5}}, ["win_rate against bot/1: lower bound 0.45 (of 0.6), min is 0.5"]),
        ({"difference": {"auc": {"min": 0}}}, ["difference.auc to bot/1: lower bound -0.02 (of 0.1), min is 0"]),
        ({"difference": {"auc": {"min": -0.05}}, "win_rate": {"min": 0.4}}, []),
        ({"auc": {"min": 0.9}, "kl": {"max": 0}, "regression": "all"}, ["auc", "kl", "regression"]),
    ],
)
def test_thresholds_look_at_the_cautious_end(policy: dict[str, Any], reasons: list[str]) -> None:
    found = against(policy, made_evaluation("bot/2", against="bot/1"))
    assert len(found) == len(reasons)
    assert all(line.startswith(reason) for line, reason in zip(found, reasons, strict=True)), found


def test_what_was_not_tried_does_not_pass() -> None:
    bare = made_evaluation("bot/2").model_copy(update={"regression": None, "votes": None})
    assert against({"auc": {"min": 0.1}}, None) == ["it was never evaluated"]
    assert against({"auc": {"min": 0.1}}, bare) == ["auc: unknown, min is 0.1"]
    assert against({"win_rate": {"min": 0.1}}, bare) == ["it was compared with no model"]
    assert "no prompts were tried" in against({"regression": "all"}, bare)[0]
    unjudged = made_evaluation("bot/2", against="bot/1")
    unjudged.opponents[0].win_rate = None
    assert against({"win_rate": {"min": 0.1}}, unjudged) == ["win_rate against bot/1: unknown, min is 0.1"]


def test_a_policy_that_compares_wants_what_is_live() -> None:
    found = made_evaluation("bot/3", against="bot/1")
    assert against({"win_rate": {"min": 0.1}}, found, "bot/1") == []
    assert against({"win_rate": {"min": 0.1}}, found, "bot/2") == ["it was not compared with bot/2, which is live"]
    assert against({"auc": {"min": 0.1}}, found, "bot/2") == []


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "m").mkdir()
    found = Registry(tmp_path)
    for run, gate in (("a", None), ("b", {"auc": {"min": 0.5}}), ("c", {"auc": {"min": 0.65}})):
        found.register("bot", tmp_path / "m", {"run": run, "gate": gate})
    return found


def test_prod_waits_for_an_evaluation_and_other_aliases_do_not(registry: Registry) -> None:
    registry.promote("bot", 1)
    with pytest.raises(
        GateError, match=r"bot/2 does not pass its gate: it was never evaluated\. Evaluate it"
    ) as caught:
        registry.promote("bot", 2)
    assert caught.value.reasons == ["it was never evaluated"]
    assert registry.aliases("bot") == {"prod": 1}
    registry.promote("bot", 2, "candidate")
    registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    assert registry.promote("bot", 2) == 1
    assert "forced" not in registry.history("bot")[-1]
    assert registry.rollback("bot") == (1, 2)


def test_force_is_in_the_history_with_what_it_overrode(registry: Registry) -> None:
    registry.evaluations("bot").add(3, made_evaluation("bot/3"), {})
    registry.promote("bot", 3, force=True)
    assert registry.history("bot")[-1]["forced"] == ["auc: lower bound 0.6 (of 0.7), min is 0.65"]
    registry.promote("bot", 1, force=True)
    assert "forced" not in registry.history("bot")[-1]
    assert registry.rollback("bot") == (3, 1)  # going back is always possible
    assert registry.promote("bot", 3) == 3


def test_the_last_evaluation_counts_and_brings_its_own_policy(registry: Registry) -> None:
    evaluations = registry.evaluations("bot")
    assert registry.refusals("bot", 1) is None
    evaluations.add(1, made_evaluation("bot/1", gate={"kl": {"max": 0.5}}), {})
    assert registry.refusals("bot", 1) == ["kl: upper bound 2 (of 1), max is 0.5"]
    evaluations.add(1, made_evaluation("bot/1", gate={"kl": {"max": 5}}), {})
    assert registry.refusals("bot", 1) == []
    assert evaluations.numbers(1) == [1, 2]
    assert registry.versions("bot") == [1, 2, 3]
    assert registry.verify("bot", 1)


def test_before_prod_a_bare_name_passes_over_shut_gates(registry: Registry) -> None:
    assert registry.resolve("bot").version == 1
    registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    assert registry.resolve("bot").version == 2
    place = registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    files.write_json(place / "evaluation.json", {"format": "evaluation/1"})
    assert registry.resolve("bot").version == 1
    registry.promote("bot", 3, force=True)
    assert registry.resolve("bot").version == 3


def test_a_name_whose_every_gate_is_shut_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    registry = Registry(tmp_path)
    registry.register("bot", tmp_path / "m", {"run": "a", "gate": {"auc": {"min": 0.5}}})
    with pytest.raises(UnknownVersionError, match=r"bot: no version has passed its gate yet.* Name one, as bot/1:"):
        registry.resolve("bot")
    assert registry.resolve("bot/1").version == 1


def test_what_cannot_be_read_is_no_pass(registry: Registry) -> None:
    evaluations = registry.evaluations("bot")
    evaluations.add(2, made_evaluation("bot/2", gate={"luck": {"min": 1}}), {})
    with pytest.raises(StorageError, match=r"its gate cannot be read \(luck"):
        registry.promote("bot", 2)
    place = evaluations.add(2, made_evaluation("bot/2"), {"report.html": b"x", "answers.jsonl": b"{}"})
    evaluations.forget_words(2, 2)
    assert [p.name for p in place.iterdir()] == ["evaluation.json"]
    files.write_json(place / "evaluation.json", {"format": "evaluation/1"})
    with pytest.raises(StorageError, match=r"evaluation.json: not an evaluation.*model.*evaluate the version again"):
        registry.promote("bot", 2)
