"""Helicone's request log: request and response bodies with the feedback given on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import answer_of, prompt_of, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    decoded,
    first,
    mapping,
    name,
    present,
    scalars,
    seconds,
    wrong_shape,
)

_ID = ("request_id", "requestId")
_REQUEST = ("request_body", "requestBody")
_RESPONSE = ("response_body", "responseBody")


def recognises(row: Row) -> bool:
    """A request with its body; snake case from the API, camel case from some exports."""
    return any(key in row for key in _ID) and any(key in row for key in (*_REQUEST, *_RESPONSE))


def read(row: Row) -> Iterator[Entry | Refused]:
    """At most one vote."""
    if not recognises(row):
        raise wrong_shape(row, "Helicone")
    label = _label(row)
    request, response = decoded(first(row, *_REQUEST)), decoded(first(row, *_RESPONSE))
    properties = mapping(first(row, "request_properties", "properties"))
    feedback = mapping(row.get("feedback"))
    fields = {
        "id": name(first(row, "feedback_id") or feedback.get("id")),
        "response_id": name(first(row, *_ID)),
        "source": "helicone",
        "model": name(first(row, "response_model", "request_model", "model") or at(request, "model")),
        "user": name(first(row, "request_user_id", "user_id", "userId", "requestUserId")),
        "conversation_id": name(first(properties, "Helicone-Session-Id", "session_id")),
        "created_at": seconds(
            first(row, "feedback_created_at", "request_created_at", "created_at", "requestCreatedAt")
        ),
        "tools": tools_of(at(request, "tools")),
        "metadata": scalars(provider=row.get("provider")),
    }
    words = {"prompt": prompt_of(request), "completion": answer_of(response), "label": label}
    yield Entry({**present(fields), **words})


def _label(row: Row) -> Any:
    """A rating of null in a feedback was taken back; a column that is null was never filled."""
    if "rating" in mapping(row.get("feedback")):
        return row["feedback"]["rating"]
    scores = mapping(row.get("scores"))
    label = first(row, "feedback_rating", "feedbackRating", "rating")
    label = first(scores, "helicone-score-feedback", "feedback", "thumb") if label is None else label
    if label is None:
        raise Refused("no_vote", "the request has no feedback")
    return label


FORMAT = Format("helicone", recognises, read)
