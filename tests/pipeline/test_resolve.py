"""What a spec is resolved to, and what its addresses depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bco_ray.config import load_spec, parse_spec
from bco_ray.errors import ModelError, SpecError
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import files
from bco_ray.testing.tiny import write_tiny_model

ROW = '{"prompt": "q", "completion": "a", "label": true}\n'


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "base")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(ROW)

    def resolved(*overrides: str) -> ResolvedJob:
        values = "name: bot\nmodel: {base: ./base}\ndata: {feedback: ['*.jsonl']}\noutput: {storage: store}\n"
        (tmp_path / "spec.yaml").write_text(values)
        return resolve(load_spec(tmp_path / "spec.yaml", overrides))

    return resolved


def test_nothing_is_left_to_guess(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make()
    assert job.spec.data.feedback == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert job.spec.training.learning_rate == 1e-6
    assert job.spec.training.precision == "fp32"
    (tmp_path / "c.jsonl").write_text(ROW)
    monkeypatch.chdir("/")
    again = resolve(parse_spec(job.spec.model_dump(), where="resolved"))
    assert again.run_directory == job.run_directory


def test_overlapping_entries_read_a_file_once(make: Any) -> None:
    assert make("data.feedback=[a.jsonl, '*.jsonl']").log.sources == make().log.sources


@pytest.mark.parametrize(
    ("override", "rescored", "retrained"),
    [
        ("training.num_workers=5", False, False),
        ("training.checkpoint.every_steps=7", False, False),
        ("training.learning_rate=1e-3", False, True),
        ("objective.beta=0.2", False, True),
        ("training.max_length=99", True, True),
        ("scoring.matching=on", True, True),
        ("data.validation=0.2", True, True),
        ("data.feedback=a.jsonl", True, True),
        ("data.conflicts=majority", True, True),
        ("data.format=canonical", False, False),
        ("rounds.half_life_days=30", True, True),
        ("rounds.off_policy_weight=1", False, False),
        ("scoring.num_workers=[0, 4]", False, False),
        ("scoring.target=mixture", True, True),
        ("scoring.length_matching=on", True, True),
        ("scoring.length_matching=off", False, False),
        ("objective.label_noise=0.1", False, True),
        ("objective.label_noise=0", False, False),
    ],
)
def test_addresses_change_with_what_changes_the_result(
    make: Any, override: str, rescored: bool, retrained: bool
) -> None:
    plain, changed = make(), make(override)
    assert (changed.scored_directory != plain.scored_directory) is rescored
    assert (changed.run_directory != plain.run_directory) is retrained


def test_what_is_not_asked_for_is_in_no_address(make: Any) -> None:
    """So that shards and runs of before these settings are found again."""
    job = make()
    assert "length_matching" not in job.scoring_identity["scoring"]
    assert "label_noise" not in job.run_identity["objective"]


@pytest.mark.parametrize("loss", ["dpo", "bco_pair", "sft"])
def test_lengths_are_matched_between_single_votes_only(make: Any, loss: str) -> None:
    with pytest.raises(SpecError, match=f"scoring.length_matching: {loss} does not train on single votes of both"):
        make(f"objective.loss={loss}", "scoring.length_matching=on")


def test_another_model_or_template_is_another_address(make: Any, tmp_path: Path) -> None:
    before = make().scored_directory
    template = tmp_path / "base" / "chat_template.jinja"
    files.write_bytes(template, template.read_bytes() + b" ")
    assert make().scored_directory != before


def test_a_name_nobody_knows_says_where_was_looked(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"acme/bot: no such directory, no registered model, and the hub"):
        make("model.base=acme/bot")
