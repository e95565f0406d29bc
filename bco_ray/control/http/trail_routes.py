"""What a job leaves behind while it runs: its events, its checkpoints, its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from bco_ray.control import wire
from bco_ray.control.checkpoints import checkpoints_of
from bco_ray.control.http.replies import FineTuningCheckpoint, FineTuningEvent
from bco_ray.control.service import JobService
from bco_ray.control.states import ENDED
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.web.access import Caller
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

FOLLOW_SECONDS = 1.0

Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(gt=-(1 << 40), lt=1 << 40, description="In bytes; below 0: so many before the end.")]

_STARTS = {
    "x-log-offset": {
        "description": "The byte of the log that the reply begins with.",
        "required": True,
        "schema": {"type": "string"},
    }
}
_BLOCK_BYTES = 1 << 20


def add_trail(routes: APIRouter, service: JobService, caller: Callable[..., Any]) -> None:
    """To the routes of jobs. `caller`: a dependency that says who may read."""
    jobs = service.jobs

    @routes.get(
        "/{job_id}/events",
        **about("listFineTuningEvents", "What happened, newest first", page_of(FineTuningEvent), 400, 404),
    )
    async def list_events(
        job_id: str,
        after: str | None = None,
        before: str | None = None,
        limit: Limit = 20,
        who: Caller = Depends(caller),
    ) -> Response:
        await asyncio.to_thread(jobs.get, job_id, who.project)
        where = {"after": after, "before": before, "limit": limit}
        found, more = await asyncio.to_thread(known_after, jobs.events, job_id, who.project, **where)
        return JSONResponse(page([wire.event(one) for one in found], has_more=more))

    @routes.get(
        "/{job_id}/checkpoints",
        **about("listFineTuningJobCheckpoints", "Newest first", page_of(FineTuningCheckpoint), 400, 404),
    )
    async def list_checkpoints(
        job_id: str, after: str | None = None, limit: Limit = 10, who: Caller = Depends(caller)
    ) -> Response:
        await asyncio.to_thread(jobs.get, job_id, who.project)
        found = await asyncio.to_thread(checkpoints_of, service.state, job_id)
        rest = _after(found, after)
        return JSONResponse(page([wire.checkpoint(one, job_id) for one in rest[:limit]], has_more=len(rest) > limit))

    @routes.get(
        "/{job_id}/logs", response_class=PlainTextResponse,
        **about(
            "retrieveFineTuningJobLogs", "What its processes printed; `follow` to the job's end", None, 404,
            also={"responses": {"200": {"headers": _STARTS}}},
        ),
    )  # fmt: skip
    async def logs(job_id: str, follow: bool = False, offset: Offset = 0, who: Caller = Depends(caller)) -> Response:
        await asyncio.to_thread(jobs.get, job_id, who.project)
        if offset < 0:
            offset = max(0, offset + await asyncio.to_thread(lambda: JobDirectory(service.state, job_id).log_bytes))
        text, headers = _log(service, job_id, offset, follow=follow), {"x-log-offset": str(offset)}
        return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)


def known_after(read: Callable[..., Any], *args: Any, **where: Any) -> Any:
    """What `read` returns. Raises ApiError if there is nothing that `after`, or `before`, names."""
    try:
        return read(*args, **where)
    except NotFoundError as error:
        wrong = "before" if str(error).startswith(f"{where.get('before')}:") else "after"
        raise ApiError(400, f"{wrong}: {error}", code="invalid_field", param=wrong) from None


def _after(found: list[Any], after: str | None) -> list[Any]:
    if after is None:
        return found
    places = [place for place, one in enumerate(found) if one.id == after]
    if not places:
        raise ApiError(400, f"after: {after}: no such checkpoint.", code="invalid_field", param="after")
    return found[places[0] + 1 :]


async def _log(service: JobService, job_id: str, offset: int, *, follow: bool) -> AsyncGenerator[bytes]:
    """From a byte on to its end; with `follow` to the job's."""
    directory = JobDirectory(service.state, job_id)
    while True:
        job = await asyncio.to_thread(service.jobs.get, job_id)
        over = not follow or (job.status in ENDED and not job.holds_cluster)
        while block := await asyncio.to_thread(directory.log_text, offset, _BLOCK_BYTES):
            offset += len(block)
            yield block
        if over:
            return
        await asyncio.sleep(FOLLOW_SECONDS)
