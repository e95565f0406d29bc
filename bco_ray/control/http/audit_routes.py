"""`/v1/audit`: who did what, for those who run a project."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from bco_ray.control.audit import AuditEntry, AuditLog
from bco_ray.control.http import replies
from bco_ray.web.access import Caller
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(pattern=r"^audit-[0-9]{1,18}$")]
Word = Annotated[str | None, Query(pattern=r"^[^\x00-\x20]{1,64}$")]


def router(log: AuditLog, *, caller: Callable[..., Any]) -> APIRouter:
    """The newest entries of the caller's project first. `caller`: a dependency that says who may read them."""
    routes = APIRouter(prefix="/v1/audit", tags=["service"])

    @routes.get("", **about("listAuditEntries", "Who did what in the project", page_of(replies.AuditEntry), 400))
    async def list_entries(
        after: After = None,
        limit: Limit = 20,
        action: Word = None,
        actor: Word = None,
        who: Caller = Depends(caller),
    ) -> Response:
        seq = None if after is None else int(after.removeprefix("audit-"))
        found, more = await asyncio.to_thread(log.list, who.project, after=seq, limit=limit, action=action, actor=actor)
        return JSONResponse(page([_wire(one) for one in found], has_more=more))

    return routes


def _wire(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": f"audit-{entry.seq}",
        "object": "audit.entry",
        "created_at": int(entry.at),
        "project": entry.project,
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "facts": entry.facts,
    }
