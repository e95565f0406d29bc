"""`/v1/registry/models/{name}/versions/{version}/evaluations`: what `bco evaluate` found out about a version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from bco_ray.serving.http import wire
from bco_ray.serving.http.registry_replies import RegisteredEvaluation
from bco_ray.serving.http.registry_routes import READ, Name, done
from bco_ray.storage.evaluations import Evaluation, Opponent, RegressionCase, files_digest
from bco_ray.storage.registry import Registry
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

Number = Annotated[int, Path(ge=1, lt=1 << 31)]
Limit = Annotated[int, Query(ge=1, le=100)]

OF_OTHERS = "It is of other weights, which had this number before; it counts for nothing."
"""A note."""


def router(registry: Registry) -> APIRouter:
    """Read from disk at every request: an evaluation is made by another process."""
    routes = APIRouter(prefix="/v1/registry/models/{name}/versions/{version}/evaluations", tags=["registry"])

    @routes.get(
        "", dependencies=READ,
        **about("listRegisteredEvaluations", "Numbers of a version's evaluations, newest first",
                page_of(RegisteredEvaluation), 400, 404),
    )  # fmt: skip
    async def list_evaluations(name: Name, version: Number, after: str | None = None, limit: Limit = 20) -> Response:
        found, more = await done(_page, registry, name, version, after, limit)
        return JSONResponse(page(found, has_more=more))

    return routes


def _page(registry: Registry, name: str, version: int, after: str | None, limit: int) -> tuple[list[wire.Json], bool]:
    """Raises UnknownVersionError, StorageError for one that cannot be read, ApiError for `after`."""
    model, book = registry.get(name, version).reference, registry.evaluations(name)
    ids = {f"{model}/{number}": number for number in reversed(book.numbers(version))}
    if after is not None and after not in ids:
        raise ApiError(400, f"after: {after[:128]}: no such evaluation.", code="invalid_field", param="after")
    rest = [one for one in ids if after is None or ids[one] < ids[after]]
    digest = files_digest(registry.get(name, version).directory)
    found = [_shown(one, ids[one], book.get(version, ids[one]), digest) for one in rest[:limit]]
    return found, len(rest) > limit


def _shown(name: str, number: int, found: Evaluation, digest: str | None) -> wire.Json:
    confidence = found.settings.get("confidence")
    return {
        "id": name,
        "object": "registry.evaluation",
        "number": number,
        **found.model_dump(mode="json", include={"model", "at", "run", "answers", "answer_tokens", "kl_on_policy"}),
        "notes": [*found.notes, *([] if found.is_of(digest) else [OF_OTHERS])],
        "confidence": confidence if isinstance(confidence, float) else None,
        "votes": found.votes and found.votes.model_dump(include={"rows", "ups", "prompts", "metrics"}),
        "opponents": [_against(one) for one in found.opponents],
        "regression": None if found.regression is None else _must_pass(found.regression),
    }


def _against(one: Opponent) -> wire.Json:
    return one.model_dump(mode="json", exclude={"votes"})


def _must_pass(cases: list[RegressionCase]) -> wire.Json:
    return {"prompts": len(cases), "failed": [case.name for case in cases if not case.passed]}
