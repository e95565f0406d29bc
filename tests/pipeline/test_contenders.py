"""Whom a version is compared with, and by which delta its rewards are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from bco_ray.config import dump_spec, parse_spec
from bco_ray.errors import SpecError
from bco_ray.models import loading
from bco_ray.objective import RewardShift, SourceOffsets
from bco_ray.objective.shift import ShiftSums
from bco_ray.pipeline.contenders import contenders
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.source_shift import FILE, fixed_offsets
from bco_ray.storage import files
from bco_ray.storage.registry import ModelVersion, Registry
from bco_ray.storage.scored import tombstone
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    write_tiny_model(tmp_path / "base")
    (tmp_path / "votes.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a", "label": True}) + "\n")
    return resolve(spec(tmp_path))


def spec(root: Path, **changes: Any) -> Any:
    values = {
        "name": "bot", "model": {"base": str(root / "base")}, "output": {"storage": str(root / "runs")},
        "data": {"feedback": str(root / "votes.jsonl"), "validation": 0.2}, **changes,
    }  # fmt: skip
    return parse_spec(values, where="test")


def registered(job: ResolvedJob, seed: int, **lineage: Any) -> ModelVersion:
    """With a run that ended at delta -1, unless it says otherwise."""
    model = write_tiny_model(job.storage / f"model-{seed}", seed=seed)
    run = job.storage / "runs" / f"run-{seed}"
    validation, beta = lineage.pop("validation", 0.2), lineage.pop("beta", 0.1)
    trained = spec(job.storage.parent, data={"feedback": "f", "validation": validation}, objective={"beta": beta})
    files.write_bytes(run / "spec.resolved.yaml", dump_spec(trained).encode())
    state = RewardShift(half_life_rows=512).advance(ShiftSums(1.0, 1.0, -3.0, 1.0)).state_dict()
    files.write_json(run / "outcome.json", {"shift": state})
    if (known := lineage.pop("validation_known", None)) is not None:
        lineage["validation"] = known
    made = {"run": run.name, "scored": "elsewhere", "reference_fingerprint": job.reference_fingerprint, **lineage}
    return Registry(job.storage).register("bot", model, made)


def test_the_base_and_what_is_live(job: ResolvedJob) -> None:
    first, second = registered(job, 1), registered(job, 2)
    model, others = contenders(job, second, ())
    assert (model.name, model.role, model.is_reference, model.delta) == ("bot/2", None, False, -1.0)
    assert [(c.name, c.role, c.is_reference, c.delta) for c in others] == [
        (str(job.storage.parent / "base"), "base", True, None)
    ]
    Registry(job.storage).promote("bot", 1)
    assert [(c.name, c.role) for c in contenders(job, second, ())[1]][1] == ("bot/1", "live")
    assert [c.role for c in contenders(job, first, ())[1]] == ["base"]  # it is live itself


def test_those_that_are_named_and_each_once(job: ResolvedJob) -> None:
    registered(job, 1)
    second = registered(job, 2)
    named = contenders(job, second, ["bot/1", "bot/1", "bot/2", str(job.storage / "model-1")])[1]
    assert [(c.name, c.role) for c in named] == [("bot/1", "named"), (str(job.storage / "model-1"), "named")]
    with pytest.raises(SpecError, match=r"--against: bot/2: that is bot/2 itself"):
        contenders(job, second, ["bot/2"])


def test_a_model_of_other_tokens_is_refused(job: ResolvedJob) -> None:
    other = write_tiny_model(job.storage / "other", vocab=290)
    with pytest.raises(SpecError, match=r"other: its vocabulary is not that of"):
        contenders(job, registered(job, 1), [str(other)])


@pytest.mark.parametrize(
    ("lineage", "delta", "note"),
    [
        ({}, -1.0, None),
        ({"validation": 0.5}, -1.0, None),
        ({"validation": 0.1}, -1.0, "trained with data.validation 0.1, less than the 0.2 here"),
        ({"beta": 0.5}, None, None),
        ({"reference_fingerprint": "another"}, None, None),
        ({"run": "gone"}, None, "its run is not in this storage"),
        ({"run": "gone", "validation_known": 0.2}, None, None),
        ({"run": "gone", "validation_known": 0.1}, None, "trained with data.validation 0.1"),
        ({"run": None}, None, None),
        ({"parent": "bot/7"}, -1.0, "was trained from bot/7, which is gone"),
        ({"parent": "/models/base"}, -1.0, None),
    ],
)
def test_how_its_numbers_are_to_be_read(
    job: ResolvedJob, lineage: dict[str, Any], delta: float | None, note: str | None
) -> None:
    model = contenders(job, registered(job, 1, **lineage), ())[0]
    assert model.delta == delta
    assert model.leaks is None if note is None else note in (model.leaks or "")


def test_what_any_of_its_ancestors_has_seen_is_no_proof(job: ResolvedJob) -> None:
    """The least that was held out on the way counts, whoever held out more since."""
    for seed, validation in ((1, 0.1), (2, 0.15), (3, 0.3)):
        registered(job, seed, validation=validation, parent=f"bot/{seed - 1}" if seed > 1 else "/models/base")
    fourth = registered(job, 4, scored=job.scored_directory.name, parent="bot/3")
    model, (base,) = contenders(job, fourth, ())
    assert model.leaks == (
        "bot/1, which bot/4 goes back to, was trained with data.validation 0.1, less than the 0.2 here: it may have "
        "been trained on some of these votes. Evaluate with 0.1."
    )
    assert base.leaks is None
    by_path = registered(job, 5, parent=str(job.storage / "models" / "bot" / "2"))
    assert "bot/1, which bot/5 goes back to," in (contenders(job, by_path, ())[0].leaks or "")
    of_run = registered(job, 6, parent=str(job.storage / "runs" / "run-1" / "model"))
    assert "run-1/model, which bot/6 goes back to, was trained with data.validation 0.1" in (
        contenders(job, of_run, ())[0].leaks or ""
    )
    cleaned = registered(job, 7, parent=str(job.storage / "runs" / "run-9" / "model"))
    assert "run-9/model, which is gone" in (contenders(job, cleaned, ())[0].leaks or "")


def test_a_kept_reference_is_compared_with(job: ResolvedJob) -> None:
    """However far the rounds have gone, the first version is looked at again."""
    first = registered(job, 1)
    registered(job, 2, reference=first.reference, reference_fingerprint=loading.fingerprint(str(first.directory)))
    third = registered(job, 3)
    kept = resolve(spec(job.storage.parent, model={"base": "bot/2", "reference": "kept"}))
    found = [(c.name, c.role, c.is_reference) for c in contenders(kept, third, ())[1]]
    assert found == [("bot/2", "base", False), ("bot/1", "reference", True)]
    Registry(job.storage).promote("bot", 1)
    assert [(c.name, c.role) for c in contenders(kept, third, ())[1]] == [("bot/2", "base"), ("bot/1", "live")]


def test_votes_it_was_trained_without_need_no_note(job: ResolvedJob) -> None:
    model = contenders(job, registered(job, 1, scored=job.scored_directory.name, validation=0.0), ())[0]
    assert model.leaks is None


def test_deltas_by_source_go_with_the_delta_they_belong_to(job: ResolvedJob) -> None:
    offsets = SourceOffsets({"web": 0.5}, other=-0.1)
    version = registered(job, 1)
    assert contenders(job, version, ())[0].offsets is None
    files.write_json(job.storage / "runs" / "run-1" / FILE, offsets.state_dict())
    assert contenders(job, version, ())[0].offsets == offsets
    elsewhere = registered(job, 2, beta=0.5)
    files.write_json(job.storage / "runs" / "run-2" / FILE, offsets.state_dict())
    assert contenders(job, elsewhere, ())[0].offsets is None


def test_offsets_are_fixed_once(job: ResolvedJob) -> None:
    """A row that is erased while the run is interrupted changes nothing about what it goes on with."""
    assert fixed_offsets(job) is None
    other = resolve(spec(job.storage.parent, objective={"shift": {"by_source": {"shrinkage_rows": 5}}}))
    assert other.run_directory != job.run_directory
    write_scored(other.scored_directory, Path(other.model_directory), chosen=20, rejected=30)
    found = fixed_offsets(other)
    assert found is not None
    assert found.named.keys() == {"web", "app"}
    tombstone(other.scored_directory, lambda rows: pc.fill_null(pc.equal(rows["source"], "web"), fill_value=False))
    assert fixed_offsets(other) == found


def test_runs_without_them_keep_their_names(job: ResolvedJob) -> None:
    assert "by_source" not in json.dumps(job.run_identity)
