"""`/v1/webhooks...`: where a project wants to be told of its jobs, and what became of telling it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from bco_ray.control.http import replies
from bco_ray.control.outgoing import MOST_URL_CHARACTERS, ForbiddenUrlError, check_url
from bco_ray.control.webhooks import Delivery, Event, UnknownCursorError, Webhook, WebhookStore
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import Deleted, page_of

P = ParamSpec("P")
T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100)]


class Member(Protocol):
    """Whoever calls, of one project; the key's id is for the audit log."""

    @property
    def project(self) -> str: ...
    @property
    def key_id(self) -> str: ...


class NewWebhook(BaseModel):
    """`url` is called with each of `events`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(min_length=1, max_length=MOST_URL_CHARACTERS)
    events: list[Event] = Field(min_length=1, max_length=16)


def router(store: WebhookStore, *, allow_private: bool, caller: Callable[..., Any]) -> APIRouter:
    """`caller` is a dependency that says who calls; `allow_private` as in `check_url`."""
    routes = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
    who: Any = Depends(caller)

    @routes.post("", status_code=201, **about("createWebhook", "Be told when a job has ended", replies.CreatedWebhook))
    async def create(body: NewWebhook, member: Member = who) -> Response:
        url = await _done(check_url, body.url, allow_private=allow_private)
        made, secret = await _done(store.create, member.project, url, body.events, actor=member.key_id)
        return JSONResponse({**_webhook(made), "secret": secret}, 201, {"cache-control": "no-store"})

    @routes.get("", **about("listWebhooks", "Webhooks of the project", page_of(replies.Webhook), 400))
    async def list_webhooks(after: str | None = None, limit: Limit = 20, member: Member = who) -> Response:
        found, more = await _done(store.list, member.project, after, limit)
        return JSONResponse(page([_webhook(one) for one in found], has_more=more))

    @routes.get("/{webhook_id}", **about("retrieveWebhook", "A webhook", replies.Webhook, 404))
    async def get(webhook_id: str, member: Member = who) -> Response:
        return JSONResponse(_webhook(await _done(store.get, member.project, webhook_id)))

    @routes.delete("/{webhook_id}", **about("deleteWebhook", "Be told no more", Deleted, 404))
    async def delete(webhook_id: str, member: Member = who) -> Response:
        await _done(store.delete, member.project, webhook_id, actor=member.key_id)
        return JSONResponse({"id": webhook_id, "object": "webhook", "deleted": True})

    @routes.get(
        "/{webhook_id}/deliveries",
        **about("listWebhookDeliveries", "What became of telling it", page_of(replies.Delivery), 400, 404),
    )
    async def deliveries(
        webhook_id: str, after: str | None = None, limit: Limit = 20, member: Member = who
    ) -> Response:
        found, more = await _done(store.deliveries, member.project, webhook_id, after, limit)
        return JSONResponse(page([_delivery(one) for one in found], has_more=more))

    return routes


async def _done(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread: it waits for the disk or for a name server. Raises ApiError."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except ForbiddenUrlError as error:
        raise ApiError(400, str(error), code="invalid_url", param="url") from None
    except UnknownCursorError as error:
        raise ApiError(400, str(error), code="invalid_field", param="after") from None


def _webhook(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "object": "webhook",
        "created_at": int(webhook.created_at),
        "url": webhook.url,
        "events": list(webhook.events),
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "object": "webhook.delivery",
        "webhook_id": delivery.webhook_id,
        "created_at": int(delivery.created_at),
        "event": delivery.event,
        "status": _status(delivery),
        "attempts": delivery.attempts,
        "next_attempt_at": _seconds(delivery.next_at),
        "delivered_at": _seconds(delivery.delivered_at),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    }


def _status(delivery: Delivery) -> str:
    if delivery.delivered_at is not None:
        return "delivered"
    return "failed" if delivery.next_at is None else "pending"


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
