"""The thumbs: `/v1/feedback...`, and `POST /v1/chat/completions/{id}` so that the stock OpenAI client can vote."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from bco_ray.serving.http import batch, replies, wire
from bco_ray.serving.http.bodies import FeedbackRequest, UpdateRequest
from bco_ray.serving.http.feedback_tokens import HEADER, FeedbackTokens
from bco_ray.serving.http.ledger import BATCH_VOTES, Ledger
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import Added, NotFoundError, Vote
from bco_ray.storage.feedback_rows import is_storable
from bco_ray.storage.thumbs import votes_by_version
from bco_ray.web.access import permit, require
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import Deleted, page_of

Limit = Annotated[int, Query(ge=1, le=1000)]

READ, VOTE = [Depends(require("read"))], [Depends(require("vote"))]

_LABELS = {"up": True, "down": False}
_KEY_HEADER = "Idempotency-Key"

_HEADERS: list[dict[str, Any]] = [
    {"name": _KEY_HEADER, "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": batch.MAX_KEY}},
    {"name": HEADER, "in": "header", "schema": {"type": "string"}},
]
"""For the schema. We read them ourselves: FastAPI takes a quarter of the time of a vote for two headers."""

_LINES = {
    "application/x-ndjson": {
        "schema": {"type": "string"},
        "example": '{"response_id": "chatcmpl-...", "label": true}\n',
    }
}
_BATCH = {
    "requestBody": {
        "description": "One `FeedbackRequest` per line, perhaps with an `idempotency_key`. Any content type will do.",
        "content": _LINES,
    }
}


@dataclass(frozen=True)
class _Votes:
    """Who may vote, and what a vote sets off."""

    ledger: Ledger
    metrics: Metrics
    tokens: FeedbackTokens

    def allow(self, response_id: str, token: str | None) -> None:
        """The one place that lets a vote in. Raises ApiError for a token that is not good for this answer."""
        if token is not None:
            self.tokens.check(token, response_id)

    async def add(self, vote: Vote, token: str | None, request: Request) -> Added:
        """Store a vote; it is on disk when this returns. Who has no key needs the token that came with the answer."""
        token = token or request.headers.get(HEADER)
        if token is None:
            permit(request, "vote")
        self.allow(vote.response_id, token)
        event, created = await self.ledger.vote(vote, _key(request))
        if created:
            self.metrics.voted(event)
        return event, created

    async def add_all(self, lines: Sequence[batch.Line]) -> list[tuple[int, Added | Exception]]:
        """What became of each line, in order."""
        parsed = list[batch.Parsed]()
        for at in range(0, len(lines), BATCH_VOTES):
            parsed += await asyncio.to_thread(batch.parse, lines[at : at + BATCH_VOTES], self.allow)
        added = iter(await self.ledger.vote_all([ballot for _, ballot in parsed if not isinstance(ballot, ApiError)]))
        outcomes: list[tuple[int, Added | Exception]] = [
            (number, it if isinstance(it, ApiError) else next(added)) for number, it in parsed
        ]
        for _, outcome in outcomes:
            if isinstance(outcome, tuple) and outcome[1]:
                self.metrics.voted(outcome[0])
        return outcomes


_AS_IT_STANDS = {
    "description": "The vote that stands already.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Feedback"}}},
}
_VOTE = about(
    "createFeedback", "Vote on an answer", replies.Feedback, 404, 409, 410,
    also={
        "parameters": _HEADERS, "security": [{}, {"api_key": ["vote"]}], "responses": {"200": _AS_IT_STANDS},
    },
)  # fmt: skip
_UPDATE = about(
    "updateChatCompletion", "Vote with OpenAI's client", replies.StoredCompletion, 404, 409, 410,
    also={"parameters": _HEADERS},
)  # fmt: skip


def router(ledger: Ledger, metrics: Metrics, tokens: FeedbackTokens) -> APIRouter:
    """Every route that reads or writes votes."""
    routes, votes, log = APIRouter(tags=["feedback"]), _Votes(ledger, metrics, tokens), ledger.log

    @routes.post("/v1/feedback", status_code=201, **_VOTE)
    async def vote(body: FeedbackRequest, request: Request) -> Response:
        event, created = await votes.add(body.vote, body.feedback_token, request)
        headers = {} if created else {"Idempotent-Replayed": "true"}
        return JSONResponse(wire.feedback(event), 201 if created else 200, headers)

    @routes.get(
        "/v1/feedback",
        dependencies=READ,
        **about("listFeedback", "Votes in order", page_of(replies.Feedback), 400),
    )
    async def list_votes(response_id: str | None = None, after: str | None = None, limit: Limit = 100) -> Response:
        try:
            found, more = await asyncio.to_thread(log.list_votes, response_id=response_id, after=after, limit=limit)
        except NotFoundError as error:
            raise ApiError(400, str(error), code="invalid_field", param="after") from None
        return JSONResponse(page([wire.feedback(event) for event in found], has_more=more))

    @routes.get(
        "/v1/feedback/summary",
        dependencies=READ,
        **about("summarizeFeedback", "Votes that stand, by version", page_of(replies.VoteCount)),
    )
    async def summary() -> Response:
        return JSONResponse(
            page([wire.vote_count(one) for one in await asyncio.to_thread(votes_by_version, log.engine)])
        )

    @routes.get(
        "/v1/feedback/{vote_id}", dependencies=READ, **about("retrieveFeedback", "A vote", replies.Feedback, 404)
    )
    async def get_vote(vote_id: str) -> Response:
        return JSONResponse(wire.feedback(await asyncio.to_thread(log.get_vote, vote_id)))

    @routes.delete(
        "/v1/feedback/{vote_id}", dependencies=VOTE, **about("deleteFeedback", "Withdraw a vote", Deleted, 404, 410)
    )
    async def delete_vote(vote_id: str) -> Response:
        if withdrawn := await ledger.withdraw(vote_id):
            metrics.voted(withdrawn)
        return JSONResponse({"id": vote_id, "object": "feedback", "deleted": True})

    @routes.post(
        "/v1/feedback/batch", dependencies=VOTE,
        **about("createFeedbackBatch", "Many votes at once", replies.FeedbackBatch, also=_BATCH),
    )  # fmt: skip
    async def vote_many(request: Request) -> Response:
        return JSONResponse(batch.summary(await votes.add_all(batch.lines_of(await request.body()))))

    @routes.post("/v1/chat/completions/{completion_id}", dependencies=VOTE, **_UPDATE)
    async def update(completion_id: str, body: UpdateRequest, request: Request) -> Response:
        label = _LABELS.get((body.metadata or {}).get("feedback", ""))
        if label is None:
            message = 'metadata.feedback must be "up" or "down"; nothing else can be updated.'
            raise ApiError(400, message, code="invalid_field", param="metadata.feedback")
        if not (0 < len(completion_id) <= 128 and is_storable(completion_id)):
            raise NotFoundError(f"{completion_id[:128]}: no such response.")
        await votes.add(Vote(response_id=completion_id, label=label), None, request)
        return JSONResponse(wire.stored(await asyncio.to_thread(log.get_completion, completion_id), body.metadata))

    return routes


def _key(request: Request) -> str | None:
    key = request.headers.get(_KEY_HEADER)
    return None if key is None else batch.checked_key(key, _KEY_HEADER)
