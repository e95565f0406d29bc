"""Which importer a file gets."""

from collections.abc import Callable
from typing import Any

import pytest

from bco_ray.errors import DataError, SpecError
from bco_ray.feedback.formats.registry import FORMATS, by_name, detect

Rows = Callable[[str], list[dict[str, Any]]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_of_a_product_is_its_own_and_nobody_elses(name: str, rows: Rows) -> None:
    for row in rows(name):
        assert [other for other, format_ in FORMATS.items() if format_.recognises(row)] == [name]


@pytest.mark.parametrize("demonstrations", [False, True])
@pytest.mark.parametrize("name", [name for name, format_ in FORMATS.items() if format_.labelled])
def test_detected_among_rows_that_nobody_knows(name: str, rows: Rows, demonstrations: bool) -> None:
    found = [{"version": 2}, *rows(name), {}]
    assert detect(found, where="log.jsonl", demonstrations=demonstrations).name == name


def test_conversations_without_a_label_are_no_praise_unless_they_are_wanted(rows: Rows) -> None:
    unlabelled = [{"version": 2}, *rows("openai-chat")]
    assert detect(unlabelled, where="log.jsonl", demonstrations=True).name == "openai-chat"
    with pytest.raises(DataError, match=r"log.jsonl: its conversations have no label.*loss: sft.*\"supervised\""):
        detect(unlabelled, where="log.jsonl")


@pytest.mark.parametrize("demonstrations", [False, True])
def test_a_vote_among_them_makes_it_a_log_of_votes(rows: Rows, demonstrations: bool) -> None:
    found = [*rows("openai-chat"), rows("ms-swift")[0]]
    assert detect(found, where="log.jsonl", demonstrations=demonstrations).name == "ms-swift"


def test_a_pair_that_is_also_a_record() -> None:
    """The more specific format wins."""
    row = {"prompt": "2+2?", "completion": "4", "label": True, "chosen": "4", "rejected": "5"}
    assert detect([row], where="log.jsonl").name == "trl-paired"


def test_unknown_rows_are_described_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"log.jsonl: no known format; .*\{question: str, stars: int\}.*map:"):
        detect([{"question": "2+2?", "stars": 4}], where="log.jsonl")
    with pytest.raises(DataError, match="no readable row"):
        detect([], where="log.jsonl")


def test_mixed_rows_are_named(rows: Rows) -> None:
    with pytest.raises(DataError, match="different formats \\(canonical, dify\\)"):
        detect([rows("dify")[0], rows("canonical")[0]], where="log.jsonl")


def test_names() -> None:
    assert by_name("open-webui").name == "open-webui"
    with pytest.raises(SpecError, match="openwebui: no such format. Did you mean open-webui"):
        by_name("openwebui")
    with pytest.raises(SpecError, match="There are auto, .*canonical"):
        by_name("zzz")
