"""docs/from-trl.md cannot rot: its YAML parses, its scripts agree with each other, its rows are imported."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import yaml
from pydantic import BaseModel

from bco_ray.config import JobSpec, load_spec, parse_spec
from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.errors import SpecError
from bco_ray.feedback.formats.registry import detect
from bco_ray.feedback.importing import ImportStage
from bco_ray.schema import LINES
from bco_ray.storage.quarantine import Quarantine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from-trl.md").read_text()
LEAST: dict[str, Any] = {"name": "some-job", "model": {"base": "/models/base"}, "data": {"feedback": "feedback.jsonl"}}
"""What a block that shows one section leaves out."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.M | re.S)


TRL_SCRIPT, SAVING, OUR_SCRIPT = blocks("python")
UNPAIRED, PAIRED = blocks("jsonl")


def spec_of(block: str) -> JobSpec:
    return parse_spec({**LEAST, **yaml.safe_load(block)}, where="docs/from-trl.md")


def trl_call(name: str) -> ast.Call:
    """The call of `name` in the TRL script."""
    calls = [node for node in ast.walk(ast.parse(TRL_SCRIPT)) if isinstance(node, ast.Call)]
    return next(call for call in calls if ast.unparse(call.func) == name)


def trl_arguments() -> dict[str, Any]:
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in trl_call("BCOConfig").keywords}


def imported(tmp_path: Path, text: str) -> tuple[str, list[dict[str, Any]]]:
    """(format that is recognised, votes) of a log of JSON lines; no row may be refused."""
    lines = text.encode().splitlines()
    format_ = detect([json.loads(line) for line in lines], where="f").name
    stage = ImportStage(Quarantine(tmp_path), {"f": format_}, None, None, DEFAULT_LABEL_MAP, 3, b"0123456789abcdef")
    table = pa.table([["f"] * len(lines), range(len(lines)), lines, [None] * len(lines)], schema=LINES)
    votes = [vote for block in stage(table) for vote in block.to_pylist()]
    assert Quarantine(tmp_path).examples(9) == []
    return format_, votes


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_yaml_block_is_a_spec(block: str) -> None:
    spec_of(block)


def test_the_losses_it_names_are_losses() -> None:
    shown = {spec_of(block).objective.loss for block in blocks("yaml")}
    assert {"bco", "kto", "dpo", "sft"} <= shown
    for loss in ("apo_zero_unpaired", "bco_pair"):
        assert f"`{loss}`" in PAGE
        assert parse_spec({**LEAST, "objective": {"loss": loss}}, where="test").objective.loss == loss


@pytest.mark.parametrize("name", ["clf.pkl", "clf.joblib", "checkpoint-500"])
def test_a_shift_starts_from_nothing_but_json(name: str) -> None:
    with pytest.raises(SpecError, match=name):
        parse_spec({**LEAST, "objective": {"shift": {"start": name}}}, where="test")


def test_python_and_yaml_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(OUR_SCRIPT, {})
    assert load_spec("spec.yaml") == spec_of(blocks("yaml")[0])


def test_both_sides_of_the_example_say_the_same() -> None:
    trl, spec = trl_arguments(), spec_of(blocks("yaml")[0])
    rows = trl.pop("per_device_train_batch_size") * trl.pop("gradient_accumulation_steps")
    assert spec.training.rows_per_step == rows
    assert spec.output.storage == trl.pop("output_dir")
    ours = {**spec.training.model_dump(), **spec.scoring.model_dump(), "beta": spec.objective.beta}
    assert {name: ours[name] for name in trl} == trl


def test_the_rows_that_datasets_saves_are_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ast.literal_eval(trl_call("Dataset.from_list").args[0])
    exec(SAVING, {"train_dataset": datasets.Dataset.from_list(rows)})
    saved = Path("feedback.jsonl").read_text()
    assert saved.strip() == UNPAIRED.strip()
    format_, votes = imported(tmp_path, saved)
    assert format_ == "canonical"
    assert [vote["label"] for vote in votes] == [row["label"] for row in rows]
    assert [json.loads(vote["prompt"])[-1]["content"] for vote in votes] == [r["prompt"][-1]["content"] for r in rows]


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    numbered = UNPAIRED.replace('"label":true', '"label":1').replace('"label":false', '"label":0')
    assert [vote["label"] for vote in imported(tmp_path, numbered)[1]] == [True, False, True]


def test_pairs_are_two_votes(tmp_path: Path) -> None:
    format_, votes = imported(tmp_path, PAIRED)
    assert format_ == "trl-paired"
    assert Counter(vote["label"] for vote in votes) == {True: 1, False: 1}


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:model|data|scoring|objective|training|output)\.[a-z_.]+)`", PAGE)))
)
def test_every_field_it_names_is_there(name: str) -> None:
    section: Any = JobSpec
    for key in name.split("."):
        assert issubclass(section, BaseModel)
        assert key in section.model_fields, f"{name} is no field of the spec"
        section = section.model_fields[key].annotation
