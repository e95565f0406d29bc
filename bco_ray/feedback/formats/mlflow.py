"""MLflow traces with the assessments people made of them (Trace.to_dict, or a row of search_traces)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import answer_of, prompt_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    decoded,
    first,
    mapping,
    name,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.thumbs import THUMBS, thumb


def recognises(row: Row) -> bool:
    """A trace with its info, or a row of the trace table."""
    info = _info(row)
    return info is not row or ("assessments" in row and ("trace_id" in row or "request_id" in row))


def _info(row: Row) -> dict[str, Any]:
    for key in ("info", "trace_info"):
        if "trace_id" in mapping(row.get(key)) or "request_id" in mapping(row.get(key)):
            return mapping(row[key])
    return row


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote for each assessment by a person."""
    if not recognises(row):
        raise wrong_shape(row, "MLflow")
    info = _info(row)
    found = decoded(first(info, "assessments") or row.get("assessments"))
    feedback = [a for a in objects(found) if a.get("expectation") is None]
    if not feedback:
        raise Refused("no_vote", "the trace has no feedback")
    answer = _answer(row, info)
    for assessment in feedback:
        try:
            yield Entry({**answer, **_assessment(assessment)})
        except Refused as verdict:
            yield verdict


def _answer(row: Row, info: dict[str, Any]) -> dict[str, Any]:
    data = mapping(row.get("data"))
    root = next((s for s in objects(first(data, "spans") or row.get("spans")) if _is_root(s)), {})
    asked = first(row, "request") or data.get("request") or _attribute(root, "mlflow.spanInputs", "inputs")
    answered = first(row, "response") or data.get("response") or _attribute(root, "mlflow.spanOutputs", "outputs")
    metadata = mapping(first(info, "trace_metadata", "request_metadata"))
    about = {
        "response_id": name(first(info, "trace_id", "request_id")),
        "source": "mlflow",
        "user": name(metadata.get("mlflow.trace.user")),
        "conversation_id": name(metadata.get("mlflow.trace.session")),
    }
    return {**present(about), "prompt": prompt_of(asked), "completion": answer_of(answered)}


def _is_root(span: dict[str, Any]) -> bool:
    return not first(span, "parent_id", "parent_span_id")


def _attribute(span: dict[str, Any], key: str, plain: str) -> Any:
    return first(span, plain) or mapping(span.get("attributes")).get(key)


def _assessment(row: Row) -> dict[str, Any]:
    what = f"assessment {str(first(row, 'assessment_name', 'name'))[:60]!r}"
    source = mapping(row.get("source"))
    if str(source.get("source_type", "HUMAN")).upper() != "HUMAN":
        raise Refused("not_human", f"{what} was given by {str(source['source_type'])[:60]}, not a person")
    if row.get("valid") is False:
        raise Refused("no_vote", f"{what} was replaced by a later one")
    if row.get("error") is not None or ("value" not in row and "value" not in mapping(row.get("feedback"))):
        raise Refused("no_vote", f"{what} has no value")
    value = row["feedback"]["value"] if "value" in mapping(row.get("feedback")) else row["value"]
    user = name(source.get("source_id"))
    fields = {
        "id": name(row.get("assessment_id")),
        "user": None if user == "default" else user,
        "created_at": seconds(first(row, "create_time", "create_time_ms")),
        "updated_at": seconds(first(row, "last_update_time", "last_update_time_ms")),
        "comment": text(row.get("rationale")),
        "metadata": scalars(score=first(row, "assessment_name", "name")),
    }
    return {**present(fields), "label": thumb(value, what)}


FORMAT = Format("mlflow", recognises, read, THUMBS)
