"""The thumbs: `/v1/feedback...`, and `POST /v1/chat/completions/{id}` so that the stock OpenAI client can vote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from bco_ray.serving.http import wire
from bco_ray.serving.http.bodies import FeedbackRequest, UpdateRequest
from bco_ray.serving.http.errors import ApiError, as_api_error, invalid_body
from bco_ray.serving.http.feedback_tokens import HEADER, FeedbackTokens
from bco_ray.serving.http.ledger import Ledger
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import Added, Ballot, NotFoundError, Vote

Limit = Annotated[int, Query(ge=1, le=1000)]

_LABELS = {"up": True, "down": False}
_KEY_HEADER = "Idempotency-Key"
_MAX_KEY = 255

_HEADERS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in (_KEY_HEADER, HEADER)
    ]
}
"""For the schema. We read them ourselves: FastAPI takes a quarter of the time of a vote for two headers."""


@dataclass(frozen=True)
class _Votes:
    """Who may vote, and what a vote sets off."""

    ledger: Ledger
    metrics: Metrics
    tokens: FeedbackTokens

    def allow(self, response_id: str, token: str | None) -> None:
        """The one place that lets a vote in. Raises ApiError for a token that is not good for this answer.

        Without any token whoever reaches the port may vote; there are no API keys yet.
        """
        if token is not None:
            self.tokens.check(token, response_id)

    async def add(self, vote: Vote, token: str | None, request: Request) -> Added:
        """Store a vote; it is on disk when this returns."""
        self.allow(vote.response_id, token or request.headers.get(HEADER))
        event, created = await self.ledger.vote(vote, _key(request))
        if created:
            self.metrics.voted(event)
        return event, created

    async def add_all(self, parsed: list[Parsed]) -> list[wire.Json]:
        """One result per line, in order."""
        good = [(number, ballot) for number, ballot in parsed if not isinstance(ballot, ApiError)]
        outcomes: dict[int, Added | Exception] = {number: bad for number, bad in parsed if isinstance(bad, ApiError)}
        added = await self.ledger.vote_all([ballot for _, ballot in good])
        outcomes.update(zip((number for number, _ in good), added, strict=True))
        for outcome in outcomes.values():
            if isinstance(outcome, tuple) and outcome[1]:
                self.metrics.voted(outcome[0])
        return [_result(number, outcomes[number]) for number, _ in parsed]

    def parsed(self, number: int, line: bytes) -> Parsed:
        """A line is the body of `POST /v1/feedback`, plus `idempotency_key`."""
        try:
            fields: Any = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError("a vote is a JSON object")
            key = fields.pop("idempotency_key", None)
            body = FeedbackRequest.model_validate(fields)
            self.allow(body.response_id, body.feedback_token)
            return number, (body.vote, None if key is None else str(key))
        except ApiError as error:
            return number, error
        except ValidationError as error:
            return number, invalid_body(error.errors())
        except (ValueError, RecursionError) as error:
            return number, ApiError(400, f"The line is not valid: {error}", code="invalid_json")


Parsed = tuple[int, Ballot | ApiError]
"""Line number from 1, and the vote with its key, or why it is none."""


def router(ledger: Ledger, metrics: Metrics, tokens: FeedbackTokens) -> APIRouter:
    """Every route that reads or writes votes."""
    routes, votes, log = APIRouter(), _Votes(ledger, metrics, tokens), ledger.log

    @routes.post("/v1/feedback", status_code=201, openapi_extra=_HEADERS)
    async def vote(body: FeedbackRequest, request: Request) -> Response:
        event, created = await votes.add(body.vote, body.feedback_token, request)
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
        await ledger.withdraw(vote_id)
        return JSONResponse({"id": vote_id, "object": "feedback", "deleted": True})

    @routes.post("/v1/feedback/batch")
    async def batch(request: Request) -> Response:
        parsed = [votes.parsed(number, line) for number, line in _lines(await request.body())]
        return JSONResponse(_summary(await votes.add_all(parsed)))

    @routes.post("/v1/chat/completions/{completion_id}", openapi_extra=_HEADERS)
    async def update(completion_id: str, body: UpdateRequest, request: Request) -> Response:
        label = _LABELS.get((body.metadata or {}).get("feedback", ""))
        if label is None:
            message = 'metadata.feedback must be "up" or "down"; nothing else can be updated.'
            raise ApiError(400, message, code="invalid_field", param="metadata.feedback")
        if not 0 < len(completion_id) <= 128:
            raise NotFoundError(f"{completion_id[:128]}: no such response.")
        await votes.add(Vote(response_id=completion_id, label=label), None, request)
        return JSONResponse(wire.stored(await asyncio.to_thread(log.get_completion, completion_id), body.metadata))

    return routes


def _key(request: Request) -> str | None:
    key = request.headers.get(_KEY_HEADER)
    if key is not None and not 0 < len(key) <= _MAX_KEY:
        message = f"{_KEY_HEADER}: between 1 and {_MAX_KEY} characters."
        raise ApiError(422, message, code="invalid_field", param=_KEY_HEADER)
    return key


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip())


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
