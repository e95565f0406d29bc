"""OpenAI's routes for fine-tuning jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response

from bco_ray.control import wire
from bco_ray.control.http.replies import FineTuningJob
from bco_ray.control.http.trail_routes import Limit, add_trail, known_after
from bco_ray.control.job import ForeignModelError, IllegalMoveError, Job, TooManyJobsError, WaitingRoom
from bco_ray.control.quotas import QuotaError
from bco_ray.control.requests import JobRequest, RetryRequest, param_of
from bco_ray.control.service import Asker, JobService
from bco_ray.errors import SpecError
from bco_ray.storage.feedback_rows import is_storable
from bco_ray.web import errors
from bco_ray.web.access import Caller
from bco_ray.web.errors import QUOTA, ApiError, Translator
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

MAX_BODY_BYTES = 1 << 20
"""Of `POST /v1/fine_tuning/jobs`, and all below it: for Edge (`larger`)."""

Key = Annotated[str | None, Header(alias="idempotency-key", min_length=1, max_length=255)]

_VERBS = {
    "cancel": "End a job, after a checkpoint",
    "pause": "Free its cluster, after a checkpoint",
    "resume": "Go on from its newest checkpoint",
}
_METADATA = {
    "parameters": [{
        "name": "metadata", "in": "query", "style": "deepObject", "explode": True,
        "description": "`metadata[team]=a`: jobs with that.",
        "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    }]
}  # fmt: skip


def router(
    service: JobService, *, caller: Callable[..., Any], submit: Callable[..., Any], waiting_limit: int | None = None
) -> APIRouter:
    """All routes. `caller` and `submit` are dependencies that return a Caller or raise: who may read, who may steer.

    `waiting_limit`: jobs of one project that may wait at once.
    """
    routes, jobs = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"]), service.jobs

    def asker(who: Caller, key: str | None) -> Asker:
        return Asker(who.project, who.key_id, key, WaitingRoom(waiting_limit, who.queued_jobs))

    @routes.post("", **about("createFineTuningJob", "Ask for a job", FineTuningJob, 404, 409))
    async def create(body: JobRequest, key: Key = None, who: Caller = Depends(submit)) -> Response:
        return _made(*await asyncio.to_thread(service.create, body, asker(who, key)))

    @routes.post(
        "/{job_id}/retry",
        **about("retryFineTuningJob", "Train again from a checkpoint, as a new job", FineTuningJob, 404, 409),
    )
    async def retry(
        job_id: str, body: RetryRequest | None = None, key: Key = None, who: Caller = Depends(submit)
    ) -> Response:
        return _made(*await asyncio.to_thread(service.retry, job_id, body or RetryRequest(), asker(who, key)))

    @routes.get("", **about("listFineTuningJobs", "Newest first", page_of(FineTuningJob), 400, also=_METADATA))
    async def list_jobs(
        request: Request, after: str | None = None, limit: Limit = 20, who: Caller = Depends(caller)
    ) -> Response:
        where = {"after": after, "limit": limit, "metadata": _metadata(request)}
        found, more = await asyncio.to_thread(known_after, jobs.page, who.project, **where)
        return JSONResponse(page([wire.job(one) for one in found], has_more=more))

    @routes.get("/{job_id}", **about("retrieveFineTuningJob", "How a job stands", FineTuningJob, 404))
    async def get_job(job_id: str, who: Caller = Depends(caller)) -> Response:
        return JSONResponse(wire.job(await asyncio.to_thread(jobs.get, job_id, who.project)))

    def steered(verb: str, move: Callable[[str, str | None, str], Job]) -> None:
        what = about(f"{verb}FineTuningJob", _VERBS[verb], FineTuningJob, 404, 409)

        @routes.post(f"/{{job_id}}/{verb}", name=f"{verb}_job", **what)
        async def steer(job_id: str, who: Caller = Depends(submit)) -> Response:
            return JSONResponse(wire.job(await asyncio.to_thread(move, job_id, who.project, who.key_id)))

    for verb, move in {"cancel": service.cancel, "pause": service.pause, "resume": service.resume}.items():
        steered(verb, move)

    add_trail(routes, service, caller)
    return routes


def as_api_error(error: Exception, otherwise: Translator = errors.as_api_error) -> ApiError:
    """What a client is told about the errors of jobs, and `otherwise`."""
    match error:
        case IllegalMoveError():
            return ApiError(409, str(error), code="invalid_state", headers={"x-should-retry": "false"})
        case TooManyJobsError():
            return ApiError(429, str(error), code="too_many_jobs", headers={"retry-after": "60"})
        case QuotaError():
            headers = {"retry-after": str(error.after_seconds), "x-should-retry": "false"}
            return ApiError(429, str(error), code=QUOTA, headers=headers)
        case ForeignModelError():
            return ApiError(403, str(error), code="model_of_another_project", param="suffix")
        case SpecError():
            return ApiError(400, str(error), code="invalid_spec", param=param_of(error.field))
    return otherwise(error)


def _made(job: Job, new: bool) -> Response:
    return JSONResponse(wire.job(job), headers={} if new else {"idempotent-replayed": "true"})


def _metadata(request: Request) -> dict[str, str]:
    """`metadata[team]=a`, as OpenAI's client sends it."""
    found = {n: v for n, v in request.query_params.items() if n.startswith("metadata[") and n.endswith("]")}
    wanted = {name[len("metadata[") : -1]: value for name, value in found.items()}
    if not all(map(is_storable, (*wanted, *wanted.values()))):
        raise ApiError(422, "metadata: holds what no text can.", code="invalid_field", param="metadata")
    if any(set(name) & {'"', "\\"} for name in wanted):
        raise ApiError(422, 'metadata: names with " or \\ cannot be asked for.', code="invalid_field", param="metadata")
    return wanted
