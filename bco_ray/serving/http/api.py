"""The whole HTTP API as a FastAPI app over an engine and a log; Ray Serve wraps it, tests run it as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import bco_ray
from bco_ray.errors import BcoError
from bco_ray.serving.http import chat, errors, evaluation_routes, feedback, registry_routes, replies, wire
from bco_ray.serving.http.feedback_tokens import FeedbackTokens, feedback_secret
from bco_ray.serving.http.ledger import Ledger
from bco_ray.serving.http.replying import Backend
from bco_ray.serving.http.settings import Settings
from bco_ray.serving.metrics import Metrics
from bco_ray.serving.versions.catalog import Catalog
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.storage.trials import Trials
from bco_ray.web import errors as web_errors
from bco_ray.web import openapi
from bco_ray.web.access import NO_KEYS, Access, Audit, Keys, RequestRate, no_audit, require
from bco_ray.web.edge import Edge, VoteCors
from bco_ray.web.errors import ApiError, Translator
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import page_of

DEFAULTS = Settings()


@dataclass(frozen=True)
class Extension:
    """Routes from elsewhere, how their errors are told, which of their paths take larger bodies (see `Edge`), and who
    writes down what callers do here.
    """

    routers: Sequence[APIRouter] = ()
    translate: Callable[[Exception, Translator], ApiError] | None = None
    larger: Mapping[str, int] = field(default_factory=dict)
    audit: Audit = no_audit

    def translator(self, ours: Translator) -> Translator:
        """Theirs first."""
        translate = self.translate
        return ours if translate is None else lambda error: translate(error, ours)


def create_api(
    catalog: Catalog,
    log: FeedbackLog,
    settings: Settings = DEFAULTS,
    *,
    metrics: Metrics | None = None,
    send_request_id: bool = True,
    keys: Keys = NO_KEYS,
    more: Extension | None = None,
) -> FastAPI:
    """The app. Engines are started and stopped by the caller; `send_request_id` False if a proxy in front does it.

    `keys`: whose callers may what. `more`: what somebody else answers on the same port.
    """
    more = more or Extension()
    metrics, ledger = metrics or Metrics(), Ledger(log, settings.retention_days)
    tokens = FeedbackTokens(feedback_secret(log.storage), settings.feedback_token_seconds)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncGenerator[None]:
        sweeping = asyncio.create_task(ledger.sweep())
        yield
        sweeping.cancel()
        await ledger.close()

    api = FastAPI(title="bco-ray", version=bco_ray.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    web_errors.install(api, more.translator(errors.as_api_error))
    api.add_middleware(Access, find=keys.find, configured=keys.any, rate=RequestRate())
    if settings.cors_origins:
        api.add_middleware(VoteCors, origins=settings.cors_origins)
    api.add_middleware(
        Edge, served=metrics.served, send_request_id=send_request_id, origins=settings.cors_origins, larger=more.larger
    )
    answering = Backend(catalog, ledger, metrics, tokens, settings.request_timeout_seconds)
    api.include_router(chat.router(answering), dependencies=[Depends(require("infer"))])
    api.include_router(feedback.router(ledger, metrics, tokens))
    registry = Registry(settings.storage or log.storage)
    api.include_router(registry_routes.router(registry, more.audit, Trials(registry, log.engine).of))
    api.include_router(evaluation_routes.router(registry))
    api.include_router(_models(catalog), dependencies=[Depends(require("infer"))])
    api.include_router(_operations(catalog, metrics))
    for router in more.routers:
        api.include_router(router)
    openapi.install(api, chat.STREAMED)
    return api


def _models(catalog: Catalog) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", **about("listModels", "Served versions, and their aliases", page_of(replies.Model)))
    async def list_models() -> Response:
        return JSONResponse(page([wire.model(served, name) for name, served in catalog.models()]))

    @routes.get("/v1/models/{name:path}", **about("retrieveModel", "A served version", replies.Model, 404))
    async def get_model(name: str) -> Response:
        with catalog.lease(name, None) as target:
            return JSONResponse(wire.model(target.served, name))

    return routes


def _operations(catalog: Catalog, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", **about("retrieveHealth", "Whether the process answers", replies.Alive))
    async def alive() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz", **about("retrieveReadiness", "Whether the models answer", replies.Ready, 503))
    async def ready() -> Response:
        health = await catalog.health()
        if not health.ok:
            raise ApiError(503, f"The engine is not ready: {health.detail}", code="engine_unavailable")
        load = await catalog.load()
        models = sorted({served.model_id for _, served in catalog.models()})
        busy = {"running": load.running, "waiting": load.waiting}
        return JSONResponse({"status": "ok", "models": models, "refused": catalog.refused(), **busy})

    @routes.get(
        "/metrics", response_class=PlainTextResponse, dependencies=[Depends(require("read"))],
        **about("retrieveMetrics", "Prometheus's text format, of one gateway process"),
    )  # fmt: skip
    async def prometheus() -> Response:
        try:
            load = await catalog.load()
        except BcoError:
            load = None  # the rest can still be told
        ready = (await catalog.health()).ok
        return Response(metrics.render(load, ready=ready), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
