"""`/v1/registry/...`: versions, what they were made from, and what their names mean. Servers follow by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from types import EllipsisType
from typing import Annotated, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from bco_ray.errors import ConflictError, GateError, ModelError, StorageError
from bco_ray.serving.http import wire
from bco_ray.serving.http.registry_replies import RegisteredModel
from bco_ray.storage.aliases import Aliases
from bco_ray.storage.gates import Gates
from bco_ray.storage.registry import ALIAS, NAME, ModelVersion, Registry, UnknownVersionError
from bco_ray.storage.trials import Trial
from bco_ray.web.access import Audit, Caller, no_audit, require
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

P = ParamSpec("P")
T = TypeVar("T")

Name = Annotated[str, Path(pattern=f"^{NAME}$", max_length=128)]
Alias = Annotated[str, Field(pattern=f"^{ALIAS}$", max_length=64)]
Version = Annotated[int, Field(ge=1, lt=1 << 31)]

_SUMMARY = ("registered_at", "run", "parent", "votes", "evaluation")
"""What of a lineage is shown; the whole of it is in the version's `lineage.json`."""


class Move(BaseModel):
    """`expected` is where the alias points now (null: nowhere yet); left out, it may point anywhere."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alias: Alias = "prod"
    expected: Version | None = None

    @property
    def condition(self) -> int | EllipsisType | None:
        """As `Registry` takes it."""
        return self.expected if "expected" in self.model_fields_set else ...


class Promotion(Move):
    """Point the alias at a version. `force`: make it `prod` even if it does not pass its gate."""

    version: Version
    force: bool = False


class Rollback(Move):
    """Back to where the alias pointed before its last move."""


class CanaryShare(BaseModel):
    """0 ends it. With `generation`, the model's as it was seen, nothing is set if anything moved since."""

    model_config = ConfigDict(extra="forbid", strict=True)

    percent: float = Field(ge=0, le=100, allow_inf_nan=False)
    generation: int | None = Field(default=None, ge=0, lt=1 << 31)


READ = [Depends(require("read"))]
Promoter = Annotated[Caller, Depends(require("promote"))]


Watch = Callable[[str], Trial | None]
"""The trial that a name's canary is."""


def router(registry: Registry, audit: Audit = no_audit, trial_of: Watch = lambda _: None) -> APIRouter:
    """Reads and moves; whoever changes a name is answered with what it means then, once `audit` was told."""
    routes = APIRouter(prefix="/v1/registry/models", tags=["registry"])

    def shown(name: str) -> wire.Json:
        return _model(registry, name, trial_of)

    @routes.get("", dependencies=READ, **about("listRegisteredModels", "All models", page_of(RegisteredModel)))
    async def list_models() -> Response:
        return JSONResponse(page(await done(lambda: [shown(name) for name in registry.names()])))

    @routes.get(
        "/{name}", dependencies=READ,
        **about("retrieveRegisteredModel", "Versions, aliases and their moves", RegisteredModel, 404),
    )  # fmt: skip
    async def get_model(name: Name) -> Response:
        return JSONResponse(await done(shown, name))

    @routes.post(
        "/{name}/promote",
        **about("promoteRegisteredModel", "Point an alias at a version", RegisteredModel, 404, 409),
    )
    async def promote(name: Name, body: Promotion, who: Promoter) -> Response:
        move = partial(registry.promote, name, body.version, body.alias, body.condition, force=body.force)
        was = await done(move)
        forced = await done(_overridden, registry, name, body) if body.force and was != body.version else {}
        await done(audit, who, "model.promote", name, alias=body.alias, version=body.version, was=was, **forced)
        return JSONResponse(await done(shown, name))

    @routes.post(
        "/{name}/rollback",
        **about("rollbackRegisteredModel", "Take back an alias's last move", RegisteredModel, 404, 409),
    )
    async def rollback(name: Name, body: Rollback, who: Promoter) -> Response:
        version, was = await done(registry.rollback, name, body.alias, body.condition)
        await done(audit, who, "model.rollback", name, alias=body.alias, version=version, was=was)
        return JSONResponse(await done(shown, name))

    @routes.post(
        "/{name}/canary",
        **about("setCanary", "Give the version behind `candidate` a share", RegisteredModel, 404, 409),
    )
    async def canary(name: Name, body: CanaryShare, who: Promoter) -> Response:
        await done(partial(registry.set_canary, name, body.percent, generation=body.generation))
        await done(audit, who, "model.canary", name, percent=body.percent)
        return JSONResponse(await done(shown, name))

    return routes


async def done(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread: it waits for a lock and for the disk. Raises ApiError."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except ConflictError as error:
        raise ApiError(409, str(error), code="alias_moved", headers={"x-should-retry": "false"}) from None
    except GateError as error:
        raise ApiError(409, str(error), code="gate_refused", headers={"x-should-retry": "false"}) from None
    except UnknownVersionError as error:
        raise ApiError(404, str(error), code="model_not_found") from None
    except ModelError as error:
        raise ApiError(400, str(error), code="not_possible") from None
    except StorageError as error:
        raise ApiError(503, str(error), code="storage_unavailable", headers={"retry-after": "1"}) from None


def _overridden(registry: Registry, name: str, to: Promotion) -> wire.Json:
    """What its gate had against the last such move."""
    moves = (
        m for m in reversed(registry.history(name)) if (m.get("alias"), m.get("version")) == (to.alias, to.version)
    )
    return {key: value for key, value in next(moves, {}).items() if key == "forced"}


def _model(registry: Registry, name: str, trial_of: Watch) -> wire.Json:
    """Raises UnknownVersionError."""
    registry.require(name)
    state, trial, numbers = registry.state(name), _trial(trial_of, name), registry.versions(name)
    gates = registry.gates(name)
    earlier = {alias: state.earlier(alias) for alias in state.aliases}
    return {
        "id": name,
        "object": "registry.model",
        "versions": [_version(registry, registry.get(name, number), state, gates) for number in numbers],
        "aliases": state.aliases,
        "before": {alias: version for alias, version in earlier.items() if version in numbers},
        "canary": asdict(state.canary) if state.canary else None,
        "trial": trial,
        "generation": state.generation,
        "history": list(state.history),
    }


def _version(registry: Registry, version: ModelVersion, state: Aliases, gates: Gates) -> wire.Json:
    return {
        "id": version.reference,
        "object": "registry.version",
        "version": version.version,
        "aliases": [alias for alias, number in state.aliases.items() if number == version.version],
        **{key: version.lineage.get(key) for key in _SUMMARY},
        "evaluations": len(registry.evaluations(version.name).numbers(version.version)),
        "gate": _gate(gates, version.version),
    }


def _trial(trial_of: Watch, name: str) -> wire.Json | None:
    """None, too, where its policy cannot be read: the candidate's `gate` says why."""
    try:
        trial = trial_of(name)
    except StorageError:
        return None
    return trial.as_json() if trial else None


def _gate(gates: Gates, version: int) -> wire.Json | None:
    """What of it can be read: a damaged evaluation must not hide the rest of the registry."""
    try:
        reasons = gates.refusals(version)
    except StorageError as error:
        reasons = [str(error)]
    return None if reasons is None else {"passes": not reasons, "reasons": reasons}
