"""Langfuse: traces (the answers) and scores (the votes on them), exported apart or together."""

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
    names,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.thumbs import THUMBS, thumb

_TRACE_KEYS = {"userId", "sessionId", "projectId", "scores", "bookmarked", "public", "htmlPath", "environment"}


def recognises(row: Row) -> bool:
    """A score, a trace, or an observation of one."""
    return _is_score(row) or _is_trace(row) or _is_observation(row)


def _is_score(row: Row) -> bool:
    return "traceId" in row and "name" in row and any(key in row for key in ("value", "stringValue", "dataType"))


def _is_trace(row: Row) -> bool:
    return {"id", "input", "output"} <= row.keys() and "traceId" not in row and bool(_TRACE_KEYS & row.keys())


def _is_observation(row: Row) -> bool:
    return {"id", "traceId", "input", "output"} <= row.keys()


def read(row: Row) -> Iterator[Entry | Refused]:
    """A rating; an answer; or the votes of a trace that brings its scores along."""
    if _is_score(row):
        yield Entry({**_score(row), "response_id": _trace_id(row)}, "rating")
    elif _is_trace(row):
        yield from _trace(row)
    elif _is_observation(row):
        raise Refused("not_a_trace", "an observation inside a trace; votes are joined with traces")
    else:
        raise wrong_shape(row, "Langfuse")


def _trace(row: Row) -> Iterator[Entry | Refused]:
    metadata = mapping(decoded(row.get("metadata")))
    about = present({
        "response_id": name(row.get("id")),
        "source": "langfuse",
        "user": name(row.get("userId")),
        "model": name(metadata.get("model")),
        "conversation_id": name(row.get("sessionId")),
        "created_at": seconds(first(row, "timestamp", "createdAt")),
        "tags": names(row.get("tags")),
    })  # fmt: skip
    answer = {**about, "prompt": prompt_of(row["input"]), "completion": answer_of(row["output"])}
    scores = objects(row.get("scores"))  # a list of ids where the API leaves the scores themselves out
    if not scores:
        yield Entry(answer, "response")
    for score in scores:
        try:
            yield Entry({**answer, **_score(score)})
        except Refused as verdict:
            yield verdict


def _score(row: Row) -> dict[str, Any]:
    what = f"score {str(row.get('name'))[:60]!r}"
    if row.get("source") == "EVAL":
        raise Refused("not_human", f"{what} was given by an evaluator, not a person")
    value = row.get("value")
    if row.get("dataType") == "CATEGORICAL" or value is None:  # whose value is the category's number, if any
        value = row.get("stringValue") if row.get("stringValue") is not None else value
    fields = {
        "id": name(row.get("id")),
        "user": name(row.get("authorUserId")),
        "created_at": seconds(first(row, "timestamp", "createdAt")),
        "updated_at": seconds(row.get("updatedAt")),
        "comment": text(row.get("comment")),
        "metadata": scalars(score=row.get("name"), observation_id=row.get("observationId")),
    }
    return {**present(fields), "label": thumb(value, what)}


def _trace_id(row: Row) -> str:
    trace_id = name(row["traceId"])
    if trace_id is None:
        raise Refused("missing_response_id", "the score is not on a trace")
    return trace_id


FORMAT = Format("langfuse", recognises, read, THUMBS, joins=True)
