"""The gate before `prod`: all reasons are told, what is unknown does not pass, and force leaves a trace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config.gate import GateSpec
from bco_ray.errors import GateError, StorageError
from bco_ray.evaluation.judging import win_rate
from bco_ray.storage import files
from bco_ray.storage.evaluations import Estimate, Evaluation, files_digest
from bco_ray.storage.gate import policy_of, refusals
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
        ({"kl_on_policy": {"max": 7}}, []),
        ({"kl_on_policy": {"max": 6}}, ["kl_on_policy: upper bound 7 (of 5), max is 6"]),
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
    assert against({"auc": {"min": 0.1}}, bare) == ["auc: unknown, min is 0.1: no votes are held out (data.validation)"]
    assert against({"win_rate": {"min": 0.1}}, bare) == ["it was compared with no model"]
    assert "no prompts were tried" in against({"regression": "all"}, bare)[0]
    unjudged = made_evaluation("bot/2", against="bot/1")
    unjudged.opponents[0].win_rate = None
    assert against({"win_rate": {"min": 0.1}}, unjudged) == [
        "win_rate against bot/1: unknown, min is 0.1: there was no judge"
    ]
    unasked = made_evaluation("bot/2").model_copy(update={"answers": 0, "kl_on_policy": Estimate(value=None)})
    assert against({"kl_on_policy": {"max": 9}}, unasked) == [
        "kl_on_policy: unknown, max is 9: 0 prompts were answered, it takes 30 (evaluation.samples)"
    ]


def test_a_few_prompts_have_a_value_and_no_cautious_bound() -> None:
    few = made_evaluation("bot/2", against="bot/1")
    assert few.votes is not None
    few.votes.prompts = 4
    few.votes.metrics["auc"] = few.opponents[0].difference["auc"] = Estimate(value=1.0)
    (reason,) = against({"auc": {"min": 0.55}}, few)
    assert reason.startswith("auc: lower bound of 1 unknown, min is 0.55: 4 prompts are held out, 20 with a thumbs-up")
    assert "it takes 30, and 10 of each (raise data.validation" in reason
    assert against({"auc": {"min": 0.55, "bound": "value"}}, few) == []
    (reason,) = against({"difference": {"auc": {"min": -0.02}}}, few)
    assert reason.startswith("difference.auc to bot/1: lower bound of 1 unknown, min is -0.02: 4 prompts")


def test_a_judge_that_decided_hardly_any_pair_decides_nothing() -> None:
    found = made_evaluation("bot/2", against="bot/1")
    for wins, undecided, reasons in (
        (1, 63, ["win_rate against bot/1: unknown, min is 0.2: the judge decided 1 of 64 pairs, it takes 80%"]),
        (51, 13, ["win_rate against bot/1: unknown, min is 0.2: the judge decided 51 of 64 pairs, it takes 80%"]),
        (52, 12, []),
    ):
        found.opponents[0].win_rate = win_rate(["win"] * wins + ["undecided"] * undecided, "j", 0.95)
        for bound in ("cautious", "value"):
            assert against({"win_rate": {"min": 0.2, "bound": bound}}, found) == reasons


def test_votes_that_may_have_been_trained_on_prove_nothing() -> None:
    leaked = made_evaluation("bot/2", against="bot/1").model_copy(update={"leaks": "it has seen them."})
    for policy in ({"auc": {"min": 0.1}}, {"win_rate": {"min": 0.1}}, {"difference": {"auc": {"min": -1}}}):
        assert against(policy, leaked) == ["its held-out votes prove nothing: it has seen them."]
    assert against({"regression": 0.5, "kl_on_policy": {"max": 9}}, leaked) == []


def test_the_difference_to_the_reference_is_unknown() -> None:
    """Its rewards are all 0: whoever learnt anything at all has a better AUC."""
    found, policy = made_evaluation("bot/2", against="bot/1"), {"difference": {"auc": {"min": -0.05}}}
    reference = found.opponents[0].model_copy(update={"model": "base", "is_reference": True, "difference": {}})
    alone = found.model_copy(update={"opponents": [reference]})
    both = found.model_copy(update={"opponents": [reference, *found.opponents]})
    assert against(policy, alone)[0].startswith("difference to base: unknown, it is the reference itself")
    assert against(policy, both, "bot/1") == []
    assert against(policy, both, "base")[0].startswith("difference to base: unknown")
    assert against({"win_rate": {"min": 0.4}}, alone) == []


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
    registry.promote("bot", 1, force=True, by="ann")
    assert registry.history("bot")[-1]["forced"] == [
        "it has none, and bot/3 has one: evaluate it with a spec that has a gate"
    ]
    assert registry.history("bot")[-1]["by"] == "ann"
    assert registry.rollback("bot") == (3, 1)  # going back is always possible
    assert registry.promote("bot", 3) == 3


def test_the_last_evaluation_counts_and_brings_its_own_policy(registry: Registry) -> None:
    evaluations = registry.evaluations("bot")
    assert registry.gates("bot").refusals(1) is None
    evaluations.add(1, made_evaluation("bot/1", gate={"kl": {"max": 0.5}}), {})
    assert registry.gates("bot").refusals(1) == ["kl: upper bound 2 (of 1), max is 0.5"]
    evaluations.add(1, made_evaluation("bot/1", gate={"kl": {"max": 5}}), {})
    assert registry.gates("bot").refusals(1) == []
    assert evaluations.numbers(1) == [1, 2]
    assert registry.versions("bot") == [1, 2, 3]
    assert registry.verify("bot", 1)


def test_a_gate_is_not_left_out_where_there_was_one(registry: Registry, tmp_path: Path) -> None:
    """A run whose spec has none makes a version that nothing is against, but for the one that it would replace."""
    for run, gate in (("d", None), ("e", {"canary": {}})):
        registry.register("bot", tmp_path / "m", {"run": run, "gate": gate})
    assert registry.gates("bot").refusals(1) is None  # the first one: nothing was before it
    for number in (4, 5):
        with pytest.raises(GateError, match=rf"bot/{number} does not pass.*: it has none, and bot/2 has one"):
            registry.promote("bot", number)
    registry.evaluations("bot").add(2, made_evaluation("bot/2"), {})
    registry.promote("bot", 2)
    assert registry.gates("bot").refusals(4) == [
        "it has none, and bot/2 has one: evaluate it with a spec that has a gate"
    ]
    registry.evaluations("bot").add(4, made_evaluation("bot/4", gate={"auc": {"min": 0.1}}), {})
    assert registry.gates("bot").refusals(4) == []
    registry.promote("bot", 1, force=True)
    assert registry.gates("bot").refusals(5) == []  # what is live has none


def test_an_evaluation_takes_no_threshold_away(registry: Registry) -> None:
    for gate in ({}, {"canary": {"min_votes": 5}}, {"difference": {}}):
        registry.evaluations("bot").add(3, made_evaluation("bot/3", gate=gate), {})
        assert registry.gates("bot").refusals(3) == ["auc: lower bound 0.6 (of 0.7), min is 0.65"]
    registry.evaluations("bot").add(3, made_evaluation("bot/3", gate={"canary": {"min_votes": 7}}), {})
    policy = registry.gates("bot").policy(3)
    assert policy is not None
    assert policy.canary is not None
    assert policy.canary.min_votes == 7


def test_an_evaluation_of_other_weights_counts_for_nothing(tmp_path: Path) -> None:
    """A version is deleted by hand, and the next one gets its number."""
    registry, model, gate = Registry(tmp_path), tmp_path / "m", {"auc": {"min": 0.5}}
    files.write_bytes(model / "weights", b"old")
    old = registry.register("bot", model, {"run": "a", "gate": gate})
    digest = files_digest(old.directory)
    evaluation = made_evaluation("bot/1").model_copy(update={"files": digest})
    evaluations = registry.evaluations("bot")
    evaluations.add(1, evaluation, {"README.md": b"old card"})
    assert registry.gates("bot").refusals(1) == []
    shutil.rmtree(old.directory)
    files.write_bytes(model / "weights", b"new")
    new = registry.register("bot", model, {"run": "b", "gate": gate})
    assert (new.version, files_digest(new.directory) != digest) == (1, True)
    assert registry.gates("bot").refusals(1) == ["it was never evaluated"]
    evaluations.copy_card(1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    evaluations.add(1, made_evaluation("bot/1"), {})  # of before evaluations named the files
    assert registry.gates("bot").refusals(1) == []


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


def test_a_registered_gate_that_cannot_be_read_is_replaced_by_evaluating_again() -> None:
    again = made_evaluation("bot/2", gate={"auc": {"min": 0.5}})
    assert policy_of({"luck": {"min": 1}}, again) == GateSpec.model_validate({"auc": {"min": 0.5}})
    with pytest.raises(StorageError, match=r"its gate cannot be read \(luck"):
        policy_of({"luck": {"min": 1}}, made_evaluation("bot/2", gate={"canary": {}}))


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
