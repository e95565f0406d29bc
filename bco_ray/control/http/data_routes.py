"""`/v1/fine_tuning/jobs/{id}/data` and `.../quarantine`: the log that a job was made from, as its run has read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from bco_ray.control.http.replies import FineTuningData, RefusedRow
from bco_ray.control.job import Job
from bco_ray.control.log_report import (
    Directories,
    LogNotReadError,
    Summarize,
    refused_of,
    report_of,
    shown_file,
)
from bco_ray.control.service import JobService
from bco_ray.storage.quarantine import Refused
from bco_ray.web.access import Caller
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

P = ParamSpec("P")
T = TypeVar("T")

RAW_CHARACTERS = 4000
NOT_READ = "log_not_read"

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(pattern=r"^[a-z]{1,32}/[0-9a-f]{1,64}:[0-9]{1,9}$")]
Reason = Annotated[str | None, Query(pattern=r"^[a-z_]{1,64}$")]


def router(
    service: JobService, *, summarize: Summarize, caller: Callable[..., Any], submit: Callable[..., Any]
) -> APIRouter:
    """`caller` and `submit` are dependencies that return a Caller or raise: who may read numbers, and who rows."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["fine-tuning"])
    directories, jobs = Directories(service.state, service.storage), service.jobs

    @routes.get("/data", **about("retrieveFineTuningJobData", "What its log turned out to be", FineTuningData, 404))
    async def data(job_id: str, who: Caller = Depends(caller)) -> Response:
        job = await asyncio.to_thread(jobs.get, job_id, who.project)
        found = await _done(report_of, directories, job, summarize)
        return JSONResponse({"object": "fine_tuning.job.data", **asdict(found)})

    @routes.get(
        "/quarantine",
        **about("listFineTuningJobQuarantine", "Rows that are not trained on, and why", page_of(RefusedRow), 404),
    )
    async def quarantine(
        job_id: str, reason: Reason = None, after: After = None, limit: Limit = 20, who: Caller = Depends(submit)
    ) -> Response:
        job = await asyncio.to_thread(jobs.get, job_id, who.project)
        wanted = partial(refused_of, directories, job, reason=reason, after=_place(after), limit=limit)
        found, more = await _done(wanted)
        return JSONResponse(page([_wire(service, job, one) for one in found], has_more=more))

    return routes


async def _done(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread: it reads files. Raises ApiError where the job is there, and its log is not read."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except LogNotReadError as error:
        raise ApiError(404, str(error), code=NOT_READ) from None


def _place(after: str | None) -> tuple[str, int]:
    name, _, row = (after or ":-1").rpartition(":")
    return name, int(row)


def _wire(service: JobService, job: Job, one: Refused) -> dict[str, Any]:
    raw = (one.row["raw"] or b"")[: 4 * RAW_CHARACTERS + 4].decode("utf-8", "replace")
    return {
        "id": one.id,
        "object": "quarantine.row",
        "stage": one.stage,
        "reason": one.row["reason"],
        "detail": one.row["detail"],
        "file": shown_file(service.storage, job, one.row["file"]),
        "position": one.row["position"],
        "raw": raw[:RAW_CHARACTERS],
        "truncated": len(raw) > RAW_CHARACTERS,
    }
