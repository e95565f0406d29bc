"""Around every request, as ASGI middleware: its id, the limit on its body, its time; and CORS for votes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bco_ray.serving.http.errors import ApiError
from bco_ray.serving.metrics import Metrics

MAX_BODY_BYTES = 32 << 20

_TOO_LARGE = f"The body exceeds {MAX_BODY_BYTES} bytes."


class Edge:
    """Gives the request an id, refuses bodies that are too large, whether they say so or not, and takes the time.

    `send_request_id` False: a proxy in front sends `x-request-id` itself.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, send_request_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._send_request_id = send_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id") or f"req-{secrets.token_hex(12)}"
        scope["bco_request_id"], scope["bco_sends_request_id"] = request_id, self._send_request_id
        status, began = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._send_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if _announced_bytes(headers) > MAX_BODY_BYTES:
                refused = ApiError(413, _TOO_LARGE, code="body_too_large")
                return await JSONResponse(refused.body, 413)(scope, receive, send_with_id)
            return await self._app(scope, _counted(receive), send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.served(route, status or 500, time.perf_counter() - began)


class VoteCors:
    """Lets pages of these origins, and no others, send votes; every other route stays closed to them."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._cors = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["POST"], allow_headers=["*"], expose_headers=["x-request-id"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        vote = scope["type"] == "http" and scope["path"] == "/v1/feedback" and scope["method"] in {"POST", "OPTIONS"}
        known = vote and ("*" in self._origins or Headers(scope=scope).get("origin") in self._origins)
        await (self._cors if known else self._app)(scope, receive, send)


def _counted(receive: Receive) -> Receive:
    """Ends a body that goes on for too long. FastAPI passes this kind of error on."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return counted


def _announced_bytes(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdigit() and len(length) < 20 else 0
