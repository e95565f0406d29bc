"""Whatever is in a row, an importer answers with entries and refusals, and never with another exception."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bco_ray.errors import Refused
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.mapped import mapped
from bco_ray.feedback.formats.registry import FORMATS
from bco_ray.feedback.parsing import read_entries, resolve_label, to_row
from bco_ray.schema import Record

KEYS = st.sampled_from([
    "id", "prompt", "completion", "label", "chosen", "rejected", "messages", "role", "content", "from", "value",
    "conversations", "kto_tag", "data", "meta", "user_id", "type", "rating", "feedback", "chat", "history",
    "conversationId", "messageId", "parentMessageId", "children", "response", "query", "answer", "conversation_id",
    "traceId", "name", "input", "output", "run_id", "key", "run_type", "inputs", "outputs", "info", "trace_id",
    "assessments", "function_name", "variant_name", "target_id", "metric_name", "request_id", "request_body",
    "response_body", "fields", "responses", "choices", "response_id", "text", "generations", "kwargs", "lc",
    "tool_calls", "tools", "weight", "functions", "helpfulness", "instruction", "completions", "annotations", "Rating",
])  # fmt: skip
WORDS = st.text(max_size=5) | st.sampled_from(["{}", "[[]]", "user"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=15
)
MAP = mapped({"prompt": "data.0.text", "completion": "response", "label": "meta.rating", "tags": "fields"})


def check(format_: Format, row: Row) -> None:
    """All that a row says, taken as far as a record."""
    assert format_.recognises(row) in (True, False)
    for outcome in outcomes(format_, row):
        if isinstance(outcome, Refused):
            assert re.fullmatch("[a-z_]+", outcome.reason)
            assert outcome.detail
        else:
            assert outcome.fields.keys() <= Record.model_fields.keys()
            unlabelled = outcome.kind in ("response", "demonstration")
            assert ("label" in outcome.fields) != unlabelled or format_.name == "canonical"
            with contextlib.suppress(Refused):  # strict about every field that an export spells wrong
                words = {"prompt": "Q", "completion": "A", "label": None} | outcome.fields
                to_row(words | resolve_label(words, format_.label_map), default_id="x")


def outcomes(format_: Format, row: Row) -> Iterator[Entry | Refused]:
    """As parsing.read_entries, for a row that is decoded already."""
    try:
        yield from format_.read(row)
    except Refused as verdict:
        yield verdict


@given(row=st.dictionaries(KEYS, JSON, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_object_through_every_importer(row: Row) -> None:
    for format_ in (*FORMATS.values(), MAP):
        check(format_, row)


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_exports_with_one_value_replaced(data: st.DataObject, rows: Any) -> None:
    """Junk in the depth of a real row gets further than a row of junk."""
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    row = copy.deepcopy(data.draw(st.sampled_from(rows(name))))
    places = list(_places(row))
    holder, key = places[data.draw(st.integers(0, len(places) - 1))]
    if data.draw(st.booleans()):
        holder[key] = data.draw(JSON)
    else:
        del holder[key]
    check(FORMATS[name], row)


def _places(value: Any) -> Any:
    """(container, key) of every value in a row."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def test_deep_nesting_is_refused(rows: Any) -> None:
    deep: Any = "4"
    for _ in range(800):
        deep = {"output": deep}
    row = {"id": "t", "input": "2+2?", "output": deep, "userId": "ada"}
    for outcome in read_entries(json.dumps(row).encode(), FORMATS["langfuse"]):
        assert isinstance(outcome, Entry | Refused)
