"""One row of a log: strict labels, text or messages, and a reason for every refusal."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.errors import Refused
from bco_ray.feedback.formats.registry import by_name
from bco_ray.feedback.parsing import LabelMap, read_entries, resolve_label, to_row
from bco_ray.schema import Record, record_to_row, row_to_fields


def parse(row: Any, label_map: LabelMap = DEFAULT_LABEL_MAP) -> Record:
    """One canonical row, all the way. Raises Refused."""
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    (entry,) = read_entries(raw, by_name("canonical"))
    if isinstance(entry, Refused):
        raise entry
    row = to_row({**entry.fields, **resolve_label(entry.fields, label_map)}, default_id="log.jsonl:7")
    return Record.model_validate(row_to_fields(row))


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "Hi", "completion": "Hello!", "label": True} | changes


def test_text_becomes_messages_and_a_missing_id_is_the_place() -> None:
    record = parse(row())
    assert [m.model_dump() for m in record.prompt] == [{"role": "user", "content": "Hi"}]
    assert record.completion[0].role == "assistant"
    assert (record.id, record.label, record.label_raw) == ("log.jsonl:7", True, "true")


@pytest.mark.parametrize(
    ("spelling", "label"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False), ("true", True), ("0", False),
     ("thumbs_up", True), ("down", False), (np.float64(1).item(), True), (np.bool_(False).item(), False)],
)  # fmt: skip
def test_equal_labels_in_different_spellings(spelling: Any, label: bool) -> None:
    assert parse(row(label=spelling)).label is label


@pytest.mark.parametrize("spelling", ["yes", "TRUE", "", 2, -1, 0.5, float("nan"), [], {"a": 1}, [True]])
def test_a_label_outside_the_map_is_refused_never_truthy(spelling: Any) -> None:
    with pytest.raises(Refused) as verdict:
        parse(row(label=spelling))
    assert verdict.value.reason == "unknown_label"


def test_ids_and_names_as_data_frames_write_them() -> None:
    record = parse(row(response_id=12, conversation_id=3.0, user=12.0, source="", id=0))
    assert (record.response_id, record.conversation_id, record.user, record.source) == ("12", "3", "12", None)
    assert record.id == "0"
    assert parse(row(response_id="", id="")).response_id is None
    for name in ("user", "response_id", "id"):
        with pytest.raises(Refused, match=f"{name}: bool is no name"):
            parse(row(**{name: True}))


@pytest.mark.parametrize(
    "time", [1767323045, 1767323045000, 1767323045e6, "1767323045", "1767323045000", "2026-01-02T03:04:05"]
)
def test_times_in_every_unit_are_seconds(time: Any) -> None:
    assert parse(row(updated_at=time)).updated_at == 1767323045.0


def test_a_map_of_ones_own() -> None:
    assert parse(row(label="GOOD"), {"GOOD": True, "BAD": False}).label is True
    with pytest.raises(Refused, match=r"'true' is not in data.label_map \(GOOD, BAD\)"):
        parse(row(label="true"), {"GOOD": True, "BAD": False})
    assert parse(row(label=False), {"GOOD": True, "BAD": False}).label is False  # JSON's own booleans
    assert parse(row(label=False), {"false": True, "x": False}).label is True  # unless the map says otherwise


def test_null_is_neutral_and_so_is_what_the_map_says() -> None:
    assert parse(row(label=None)).label is None
    assert parse(row(label="meh"), {"meh": None}).label is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "invalid_json"),
        (b"\xff{}", "invalid_utf8"),
        (b"[" * 100_000, "invalid_json"),
        (b"[1]", "not_an_object"),
        (b'{"prompt": "\\ud800", "completion": "x", "label": true}', "invalid_text"),
        ({"prompt": "Hi", "completion": "Hello!"}, "missing_label"),
        (row(prompt=None), "missing_prompt"),
        (row(prompt=""), "empty_prompt"),
        (row(completion="  "), "empty_completion"),
        (row(completion=[]), "empty_completion"),
        (row(completion=True), "invalid_completion"),
        (row(completion=[{"role": "assistant", "content": True}]), "invalid_completion"),
        (row(prompt=[{"content": "no role"}]), "invalid_prompt"),
        (row(weight=-1), "invalid_field"),
        (row(weight=float("nan")), "invalid_field"),
        (row(created_at="yesterday"), "invalid_field"),
        (row(created_at=float("nan")), "invalid_field"),
        (row(created_at=float("inf")), "invalid_field"),
        (row(tags="one"), "invalid_field"),
        (row(weight=1e39), "invalid_field"),
        (row(metadata={"a": json.loads("[" * 300 + "]" * 300)}), "invalid_field"),
        (row(prompt=[{"role": "user", "content": "x", "deep": json.loads("[" * 300 + "]" * 300)}]), "invalid_field"),
    ],
)  # fmt: skip
def test_every_refusal_has_its_reason(bad: Any, reason: str) -> None:
    with pytest.raises(Refused) as verdict:
        parse(bad)
    assert verdict.value.reason == reason


def test_what_the_log_says_is_kept_and_survives_arrow_rows() -> None:
    given_row = row(
        id=12, source="web", model="bot/3", user="u1", comment="meh", tags=["a"], correction="Hey", weight=0.5,
        created_at="2026-01-02T03:04:05+00:00", metadata={"n": [1, {"x": None}]}, tools=[{"type": "function"}],
        prompt=[{"role": "user", "content": [{"type": "text", "text": "part"}], "name": "Ada"}], unknown="dropped",
    )  # fmt: skip
    record = parse(given_row)
    assert (record.id, record.weight, record.created_at) == ("12", 0.5, 1767323045.0)
    assert record.prompt[0].model_dump()["name"] == "Ada"
    assert Record.model_validate(row_to_fields(record_to_row(record))) == record


KEYS = st.sampled_from(["prompt", "completion", "label", "weight", "role", "content", "tags", "metadata"])
LEAVES = st.none() | st.booleans() | st.floats() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_nothing_but_a_record_or_a_refusal(raw: bytes) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(parse(raw), Record)
