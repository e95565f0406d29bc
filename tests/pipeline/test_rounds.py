"""What a round has to do with those before it: the reference it keeps, the names of its models, its address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bco_ray.config import parse_spec
from bco_ray.control.places import check_places
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.errors import SpecError
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.run import scoring_job, train_setup
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """bot/1 as it came, and two rounds of votes on it."""
    monkeypatch.chdir(tmp_path)
    Registry(tmp_path / "store").register("bot", write_tiny_model(tmp_path / "base"), {})
    vote(tmp_path / "store", "ann")
    return tmp_path / "store"


def vote(storage: Path, user: str) -> None:
    log = FeedbackLog.open(storage)
    prompt = [{"role": "user", "content": "q"}]
    log.add_completion(Completion(user, 1.0, "bot/1", "fp", prompt, [1], [Choice("a", [2], "stop")], {}))
    log.add_vote(Vote(response_id=user, label=True, user=user))


def job(storage: Path, base: str, **sections: Any) -> ResolvedJob:
    values = {"name": "bot", "data": {"feedback": "feedback:"}, "output": {"storage": str(storage)}, **sections}
    return resolve(parse_spec({**values, "model": {"base": base, **sections.get("model", {})}}, where="test"))


def register(storage: Path, trained: ResolvedJob, seed: int) -> str:
    """As if the job had been run: another model, with the lineage that such a version has."""
    lineage = {
        "run": trained.run_directory.name, "parent": trained.spec.model.base, "feedback": trained.spec.data.feedback,
        "reference": trained.spec.model.reference or trained.spec.model.base,
        "reference_fingerprint": trained.reference_fingerprint,
    }  # fmt: skip
    made = write_tiny_model(storage.parent / f"made-{seed}", seed=seed)
    return Registry(storage).register("bot", made, lineage).reference


KEPT = {"model": {"reference": "kept"}}


def test_the_first_reference_is_kept_over_the_rounds(storage: Path) -> None:
    first = job(storage, "bot/1", **KEPT)
    assert (first.spec.model.reference, first.reference_directory) == (None, first.model_directory)
    assert train_setup(first).starts_at_reference
    second_version = register(storage, first, 1)
    vote(storage, "bob")
    second = job(storage, second_version, **KEPT)
    assert (second.spec.model.base, second.spec.model.reference) == ("bot/2", "bot/1")
    assert not train_setup(second).starts_at_reference  # so delta is looked up by a probe
    third_version = register(storage, second, 2)
    vote(storage, "cyd")
    third = job(storage, third_version, **KEPT)
    assert (third.spec.model.base, third.spec.model.reference) == ("bot/3", "bot/1")
    again = resolve(third.spec)
    assert again.run_directory == third.run_directory
    moved = job(storage, third_version)
    assert moved.spec.model.reference is None
    assert moved.run_directory != third.run_directory


def test_a_reference_that_cannot_be_kept_says_why(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"kept: model.base is .*base, no registered version.*Leave model.reference out"
    ):
        job(storage, str(tmp_path / "base"), **KEPT)
    first = job(storage, str(tmp_path / "base"))
    version = register(storage, first, 1)
    vote(storage, "bob")
    assert job(storage, version, **KEPT).spec.model.reference == str(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(SpecError, match=r"kept: .*base has changed since bot/2 was trained with it"):
        job(storage, version, **KEPT)


def test_a_model_of_that_name_is_not_taken_for_the_word(storage: Path, tmp_path: Path) -> None:
    Registry(storage).register("kept", tmp_path / "base", {})
    with pytest.raises(SpecError, match=r"there is a model of that name, too. Write ./kept or kept/1"):
        job(storage, "bot/1", **KEPT)
    assert job(storage, "bot/1", model={"reference": "kept/1"}).spec.model.reference == "kept/1"


def test_what_scoring_is_told_and_what_its_address_depends_on(storage: Path, tmp_path: Path) -> None:
    first = job(storage, "bot/1", rounds={"older": 0.25})
    assert (first.policy, first.mixing.draws) == ("bot/1", False)
    assert first.scored_directory == job(storage, "bot/1").scored_directory
    version = register(storage, first, 1)
    vote(storage, "bob")
    second = job(storage, version, rounds={"older": 0.25, "half_life_days": 30, "off_policy_weight": 0.5})
    mixing = scoring_job(second).mixing
    assert (mixing.older, mixing.half_life_days, mixing.off_policy_weight, mixing.policy, mixing.salt) == (
        0.25, 30, 0.5, "bot/2", "feedback:1..2",
    )  # fmt: skip
    assert [Path(path).name for path in mixing.older_files] == ["part-1-1.parquet"]
    assert resolve(second.spec).scored_directory == second.scored_directory
    others = [{"older": 0.5}, {"older": 0.25}, {"half_life_days": 30}, {"off_policy_weight": 0.5}, {}]
    assert len({job(storage, version, rounds=rounds).scored_directory for rounds in others}) == len(others)
    with pytest.raises(
        SpecError, match=r"rounds.off_policy_weight: .*base is no registered version.*model.base: name/3"
    ):
        job(storage, str(tmp_path / "base"), rounds={"off_policy_weight": 0.5})


def test_a_request_may_say_all_of_it() -> None:
    said = {"rounds": {"older": 0.25, "half_life_days": 30}, "model": {"reference": "kept"}}
    asked = JobRequest(model="bot", training_file="feedback:", spec=said)
    spec = spec_of(asked, "ftjob-1", "/store", log="feedback:", register_as="bot")
    assert (spec.rounds.older, spec.model.reference) == (0.25, "kept")
    seen: list[str] = []
    check_places(spec, lambda field, place, use: seen.append(field))
    assert "model.reference" not in seen
