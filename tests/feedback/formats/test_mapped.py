"""A log of one's own shape."""

import pickle
from typing import Any

import pytest

from bco_ray.errors import Refused, SpecError
from bco_ray.feedback.formats.mapped import mapped

MAP = {"prompt": "question", "completion": "answers.0.text", "label": "meta.thumb", "user": "meta.who"}


def fields(row: dict[str, Any], map_: dict[str, str] = MAP) -> dict[str, Any]:
    (entry,) = mapped(map_).read(row)
    assert not isinstance(entry, Refused)
    return entry.fields


def test_paths_of_keys_and_numbers() -> None:
    row = {"question": "2+2?", "answers": [{"text": "4"}], "meta": {"thumb": None}}
    assert fields(row) == {"prompt": "2+2?", "completion": "4", "label": None}


def test_a_column_with_dots_in_its_name() -> None:
    row = {"question": "2+2?", "answers.0.text": "4", "meta.thumb": "up", "meta.who": "ada"}
    assert fields(row)["completion"] == "4"
    assert fields(row)["user"] == "ada"


@pytest.mark.parametrize("row", [{}, {"question": "2+2?", "answers": [], "meta": {"thumb": 1}}, {"question": "2+2?"}])
def test_what_is_not_there_is_named(row: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="data.format.map.(prompt|completion)") as refused:
        fields(row)
    assert refused.value.reason in ("missing_prompt", "missing_completion")


@pytest.mark.parametrize("change", [{"vote": "x"}, {"label_raw": "x"}])
def test_unknown_fields(change: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="no such field; there are"):
        mapped(MAP | change)


def test_needed_fields() -> None:
    with pytest.raises(SpecError, match="completion, label is missing"):
        mapped({"prompt": "question"})


def test_it_travels_to_workers() -> None:
    assert pickle.loads(pickle.dumps(mapped(MAP))).name == "map"
