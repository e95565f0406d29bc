"""Many votes in one body, one JSON object per line: what each line says, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from bco_ray.serving.http import wire
from bco_ray.serving.http.bodies import FeedbackRequest
from bco_ray.serving.http.errors import as_api_error
from bco_ray.storage.feedback_rows import Added, Ballot, is_storable
from bco_ray.web.errors import ApiError, invalid_body
from bco_ray.web.pages import page

MAX_LINES = 10_000
MAX_KEY = 255

Line = tuple[int, bytes]
"""Its number, from 1, and what it says."""

Parsed = tuple[int, Ballot | ApiError]
"""Line number, and the vote with its key, or why it is none."""


def lines_of(body: bytes) -> list[Line]:
    """Those that are not blank. Raises ApiError for too many."""
    body = body.rstrip()
    if body.count(b"\n") >= MAX_LINES:
        raise ApiError(413, f"The body has more than {MAX_LINES} lines; send several.", code="body_too_large")
    return [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]


def parse(lines: Sequence[Line], allow: Callable[[str, str | None], None]) -> list[Parsed]:
    """Each line is the body of `POST /v1/feedback`, plus `idempotency_key`. `allow` (answer, token) raises ApiError."""
    return [(number, _parse(line, allow)) for number, line in lines]


def checked_key(key: Any, param: str) -> str:
    """An idempotency key, wherever it came from. Raises ApiError."""
    if isinstance(key, str) and 0 < len(key) <= MAX_KEY and is_storable(key):
        return key
    message = f"{param}: a string of 1 to {MAX_KEY} characters, without U+0000 and halves of surrogate pairs."
    raise ApiError(422, message, code="invalid_field", param=param)


def summary(outcomes: Sequence[tuple[int, Added | Exception]]) -> wire.Json:
    """The reply: one result per line, and how many there are of each kind."""
    results = [_result(number, outcome) for number, outcome in outcomes]
    statuses = [result["status"] for result in results]
    counts = {"created": statuses.count(201), "replayed": statuses.count(200)}
    return {**page(results), **counts, "rejected": len(results) - sum(counts.values())}


def _parse(line: bytes, allow: Callable[[str, str | None], None]) -> Ballot | ApiError:
    try:
        fields: Any = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("a vote is a JSON object")
        key = fields.pop("idempotency_key", None)
        body = FeedbackRequest.model_validate(fields)
        key = None if key is None else checked_key(key, "idempotency_key")
        allow(body.response_id, body.feedback_token)
    except ApiError as error:
        return error
    except ValidationError as error:
        return invalid_body(error.errors())
    except (ValueError, RecursionError) as error:
        return ApiError(400, f"The line is not valid: {error}", code="invalid_json")
    return body.vote, key


def _result(number: int, outcome: Added | Exception) -> wire.Json:
    if isinstance(outcome, tuple):
        event, created = outcome
        return {"object": "feedback.result", "line": number, "status": 201 if created else 200, "id": event.id}
    answer = as_api_error(outcome)
    return {"object": "feedback.result", "line": number, "status": answer.status, "id": None, **answer.body}
