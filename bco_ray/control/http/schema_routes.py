"""`GET /v1/fine_tuning/schema`: what a request for a job may say, the spec's sections too. A form is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from bco_ray.config.spec import JobSpec
from bco_ray.control.http.replies import FineTuningSchema
from bco_ray.control.requests import CLOSED, ELSEWHERE, METHODS, JobRequest
from bco_ray.web.access import Caller
from bco_ray.web.openapi import about

Json = dict[str, Any]


def router(*, caller: Callable[..., Any]) -> APIRouter:
    """`caller`: a dependency that says who may read."""
    routes = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
    said = {
        "object": "fine_tuning.schema",
        "methods": list(METHODS),
        "request": JobRequest.model_json_schema(),
        "spec": sections(),
    }

    @routes.get(
        "/schema", **about("retrieveFineTuningSchema", "What a request for a job may say, as schemas", FineTuningSchema)
    )
    async def schema(who: Caller = Depends(caller)) -> Response:
        return JSONResponse(said)

    return routes


def sections() -> Json:
    """The schema of a request's `spec`: the spec's, without what a request may not say or says elsewhere."""
    whole = JobSpec.model_json_schema()
    properties: Json = {name: kind for name, kind in whole["properties"].items() if name not in CLOSED}
    for section, field in ELSEWHERE:
        kept = whole["$defs"][properties[section]["$ref"].rsplit("/", 1)[1]]
        kept["properties"].pop(field)
        kept["required"] = [name for name in kept.get("required", ()) if name != field]
    return {**whole, "properties": properties, "required": []}
