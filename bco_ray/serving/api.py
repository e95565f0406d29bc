"""The whole HTTP API as a FastAPI app over an engine and a log; Ray Serve wraps it, tests run it as it is."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response

import bco_ray
from bco_ray.serving import chat, errors, feedback, wire
from bco_ray.serving.args import Served
from bco_ray.serving.engine import Engine
from bco_ray.serving.errors import ApiError
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.text import Tokenizer


def create_api(
    engine: Engine, served: Served, tokenizer: Tokenizer, log: FeedbackLog, *, send_request_id: bool = True
) -> FastAPI:
    """The app. The engine is started and stopped by the caller; `send_request_id` False if a proxy in front does it."""
    api = FastAPI(title="bco-ray", version=bco_ray.__version__, docs_url=None, redoc_url=None)
    metrics = Metrics()
    errors.install(api, send_request_id=send_request_id)
    api.include_router(chat.router(chat.Backend(engine, served, tokenizer, log, metrics)))
    api.include_router(feedback.router(log, metrics))
    api.include_router(_models(served))
    api.include_router(_operations(engine, served, metrics))
    return api


def _models(served: Served) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse(wire.page([wire.model(served, name) for name in (served.model_id, *served.aliases)]))

    @routes.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        chat.check_model(served, name)
        return JSONResponse(wire.model(served, name))

    return routes


def _operations(engine: Engine, served: Served, metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    async def pointers() -> Response:
        links = ["/v1/models", "/v1/chat/completions", "/v1/feedback", "/readyz", "/metrics", "/openapi.json"]
        return JSONResponse({"service": "bco-ray", "model": served.model_id, "routes": links})

    @routes.get("/healthz")
    async def alive() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz")
    async def ready() -> Response:
        health = await engine.health()
        if not health.ok:
            raise ApiError(503, f"The engine is not ready: {health.detail}", code="engine_unavailable")
        load = await engine.load()
        return JSONResponse(
            {"status": "ok", "model": served.model_id, "running": load.running, "waiting": load.waiting}
        )

    @routes.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
