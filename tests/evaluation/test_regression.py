"""Must-pass prompts: what is asked of an answer, and a file with a mistake names its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bco_ray.errors import SpecError
from bco_ray.evaluation.regression import Case, load_cases


def test_every_problem_is_named() -> None:
    case = Case.model_validate(
        {"prompt": "When?", "must_contain": ["nine", "six"], "must_not_contain": "sorry",
         "must_match": r"\d\d:\d\d|o'clock", "must_not_match": "(?i)as an ai"}
    )  # fmt: skip
    assert case.problems("From nine to six o'clock.") == []
    found = case.problems("As an AI I am sorry, nine.")
    assert [found[0], found[1], found[3]] == ["lacks 'six'", "has 'sorry'", "matches '(?i)as an ai'"]
    assert found[2].startswith("does not match ")


def test_a_file_of_cases(tmp_path: Path) -> None:
    path = tmp_path / "must.jsonl"
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rows = [{"name": "greets", "prompt": messages, "must_match": "(?i)hello"}, {"prompt": "x", "must_not_contain": "y"}]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    first, second = load_cases(path)
    assert (first.name, [m.role for m in first.prompt]) == ("greets", ["system", "user"])
    assert (second.name, second.prompt[0].content) == ("line 3", "x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"must.jsonl:2: not JSON"),
        ("[1]", r"must.jsonl:2: "),
        ('{"prompt": "x"}', "say what must, or must not, be in the answer"),
        ('{"prompt": "x", "must_match": "("}', r"must_match: .*'\(' is no regular expression"),
        ('{"prompt": "x", "must_contains": "y"}', "must_contains: Extra inputs are not permitted"),
        ('{"prompt": [], "must_contain": "y"}', "prompt"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "must.jsonl"
    path.write_text('{"prompt": "x", "must_contain": "y"}\n' + line + "\n")
    with pytest.raises(SpecError, match=message) as caught:
        load_cases(path)
    assert "evaluation.regression" in str(caught.value)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_cases(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SpecError, match="there is no prompt in it"):
        load_cases(tmp_path / "empty.jsonl")
