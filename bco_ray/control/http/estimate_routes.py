"""`POST /v1/fine_tuning/jobs/estimate`: what a job would take, asked with the body that would create it.

Reckoning loads transformers and reads logs, so it is done in a process of its own: a gateway only waits for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from bco_ray.control.http.replies import FineTuningEstimate
from bco_ray.control.requests import JobRequest
from bco_ray.control.service import JobService
from bco_ray.web.access import Caller
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about

AT_ONCE = 2
"""Processes of one gateway."""

SECONDS = 60.0
END_SECONDS = 5.0

COMMAND = (sys.executable, "-m", "bco_ray.pipeline.estimate")
_REFUSED = 2
_STDERR_CHARACTERS = 2000


def router(
    service: JobService, *, submit: Callable[..., Any], seconds: float = SECONDS, command: Sequence[str] = COMMAND
) -> APIRouter:
    """`submit` is a dependency that returns a Caller or raises. `seconds` an estimate may take, its turn included."""
    routes, turns = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"]), asyncio.Semaphore(AT_ONCE)
    busy: set[str] = set()

    @routes.post("/estimate", **about("estimateFineTuningJob", "What a job would take", FineTuningEstimate, 404))
    async def estimate(body: JobRequest, who: Caller = Depends(submit)) -> Response:
        spec = await asyncio.to_thread(service.spec_for, body, who.project)
        if who.key_id in busy:
            message = "An estimate for this key is being made; wait for it."
            raise ApiError(429, message, code="estimate_running", headers={"retry-after": "10"})
        busy.add(who.key_id)
        try:
            async with asyncio.timeout(seconds), turns:
                found = await _reckoned(command, spec.model_dump_json().encode())
        except TimeoutError:
            message = (
                f"The estimate was not done within {seconds:g} s. Ask again when the server has less to do, or run "
                "`bco run SPEC --dry-run`, which has no such limit."
            )
            raise ApiError(503, message, code="estimate_timeout", headers={"retry-after": "30"}) from None
        finally:
            busy.discard(who.key_id)
        return JSONResponse({"object": "fine_tuning.job.estimate", **found})

    return routes


async def _reckoned(command: Sequence[str], spec: bytes) -> dict[str, Any]:
    """What the command says of the spec. Raises ApiError if it refuses it, RuntimeError if it fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate(spec)
    finally:
        await _end(process)
    if process.returncode == _REFUSED:
        error = json.loads(out)["error"]
        raise ApiError(400, error["message"], code={"spec_error": "invalid_spec"}.get(error["code"], error["code"]))
    if process.returncode:
        said = err.decode(errors="replace")[-_STDERR_CHARACTERS:]
        raise RuntimeError(f"the estimate ended with {process.returncode}: {said}")
    found: dict[str, Any] = json.loads(out)
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    """Of one that nobody waits for any more: it may clean up first."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
