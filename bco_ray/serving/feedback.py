"""The thumbs: `/v1/feedback...`, and `POST /v1/chat/completions/{id}` so that the stock OpenAI client can vote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from bco_ray.serving import wire
from bco_ray.serving.errors import ApiError, as_api_error, invalid_body
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import Added, FeedbackLog, NotFoundError, Vote

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Limit = Annotated[int, Query(ge=1, le=1000)]

_TRANSACTION_VOTES = 500
_LABELS = {"up": True, "down": False}


def router(log: FeedbackLog, metrics: Metrics) -> APIRouter:
    """Every route that reads or writes votes."""
    routes = APIRouter()

    @routes.post("/v1/feedback", status_code=201)
    async def vote(body: Vote, idempotency_key: IdempotencyKey = None) -> Response:
        event, created = await _add(log, metrics, body, idempotency_key)
        headers = {} if created else {"Idempotent-Replayed": "true"}
        return JSONResponse(wire.feedback(event), 201 if created else 200, headers)

    @routes.get("/v1/feedback")
    async def list_votes(response_id: str | None = None, after: str | None = None, limit: Limit = 100) -> Response:
        try:
            page = await asyncio.to_thread(log.list_votes, response_id=response_id, after=after, limit=limit)
        except NotFoundError as error:
            raise ApiError(400, str(error), code="invalid_field", param="after") from None
        return JSONResponse(wire.page([wire.feedback(event) for event in page[0]], has_more=page[1]))

    @routes.get("/v1/feedback/{vote_id}")
    async def get_vote(vote_id: str) -> Response:
        return JSONResponse(wire.feedback(await asyncio.to_thread(log.get_vote, vote_id)))

    @routes.delete("/v1/feedback/{vote_id}")
    async def delete_vote(vote_id: str) -> Response:
        await asyncio.to_thread(log.delete_vote, vote_id)
        return JSONResponse({"id": vote_id, "object": "feedback", "deleted": True})

    @routes.post("/v1/feedback/batch")
    async def batch(request: Request) -> Response:
        parsed = [_parsed(number, line) for number, line in _lines(await request.body())]
        return JSONResponse(_summary(await _add_all(log, metrics, parsed)))

    @routes.post("/v1/chat/completions/{completion_id}")
    async def update(completion_id: str, body: wire.UpdateRequest, idempotency_key: IdempotencyKey = None) -> Response:
        label = _LABELS.get((body.metadata or {}).get("feedback", ""))
        if label is None:
            message = 'metadata.feedback must be "up" or "down"; nothing else can be updated.'
            raise ApiError(400, message, code="invalid_field", param="metadata.feedback")
        await _add(log, metrics, Vote(response_id=completion_id, label=label), idempotency_key)
        return JSONResponse(wire.stored(await asyncio.to_thread(log.get_completion, completion_id), body.metadata))

    return routes


Parsed = tuple[int, tuple[Vote, str | None] | ApiError]
"""Line number from 1, and the vote with its key, or why it is none."""


async def _add(log: FeedbackLog, metrics: Metrics, vote: Vote, key: str | None) -> Added:
    event, created = await asyncio.to_thread(log.add_vote, vote, key)
    if created:
        metrics.voted(event)
    return event, created


async def _add_all(log: FeedbackLog, metrics: Metrics, parsed: list[Parsed]) -> list[wire.Json]:
    """One result per line, in order; the good lines are stored in transactions of moderate size."""
    good = [(number, vote) for number, vote in parsed if not isinstance(vote, ApiError)]
    outcomes: dict[int, Added | Exception] = {number: bad for number, bad in parsed if isinstance(bad, ApiError)}
    for start in range(0, len(good), _TRANSACTION_VOTES):
        part = good[start : start + _TRANSACTION_VOTES]
        added = await asyncio.to_thread(log.add_votes, [vote for _, vote in part])
        outcomes.update(zip((number for number, _ in part), added, strict=True))
    for outcome in outcomes.values():
        if isinstance(outcome, tuple) and outcome[1]:
            metrics.voted(outcome[0])
    return [_result(number, outcomes[number]) for number, _ in parsed]


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip())


def _parsed(number: int, line: bytes) -> Parsed:
    """A line is the body of `POST /v1/feedback`, plus `idempotency_key`."""
    try:
        fields: Any = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("a vote is a JSON object")
        key = fields.pop("idempotency_key", None)
        return number, (Vote.model_validate(fields), None if key is None else str(key))
    except ValidationError as error:
        return number, invalid_body(error.errors())
    except (ValueError, RecursionError) as error:
        return number, ApiError(400, f"The line is not valid: {error}", code="invalid_json")


def _result(number: int, outcome: Added | Exception) -> wire.Json:
    if isinstance(outcome, tuple):
        event, created = outcome
        return {"object": "feedback.result", "line": number, "status": 201 if created else 200, "id": event.id}
    answer = as_api_error(outcome)
    return {"object": "feedback.result", "line": number, "status": answer.status, "id": None, **answer.body}


def _summary(results: list[wire.Json]) -> wire.Json:
    statuses = [result["status"] for result in results]
    counts = {"created": statuses.count(201), "replayed": statuses.count(200)}
    return {**wire.page(results), **counts, "rejected": len(results) - sum(counts.values())}
