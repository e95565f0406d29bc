"""Around every request, as ASGI middleware: its id, whose page sent it, its size, its time; and CORS for votes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bco_ray.telemetry import log_context, span
from bco_ray.web.errors import ApiError

MAX_BODY_BYTES = 32 << 20

Served = Callable[[str, int, float], None]
"""Told of every request: its route's pattern, its status, its seconds."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_CLIENT_LEFT = 499
_NO_LARGER: Mapping[str, int] = MappingProxyType({})


class Edge:
    """Gives the request an id, which its log lines tell, and a span; refuses what a foreign page sends and bodies that
    are too large, whether they say so or not; and takes the time.

    `origins`: whose pages may send, besides our own. `send_request_id` False: a proxy in front sends `x-request-id`.
    `larger`: the paths whose bodies may have other sizes than MAX_BODY_BYTES, and which; one with a / at its end: all
    below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        served: Served,
        send_request_id: bool,
        origins: Collection[str] = (),
        larger: Mapping[str, int] = _NO_LARGER,
    ) -> None:
        self._app = app
        self._served = served
        self._larger = larger
        self._origins = frozenset(origins)
        self._send_request_id = send_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id") or f"req-{secrets.token_hex(12)}"
        scope["bco_request_id"], scope["bco_sends_request_id"] = request_id, self._send_request_id
        about = {"url.path": scope["path"], "bco.request_id": request_id}
        with log_context(request_id=request_id), span(scope["method"], headers.get("traceparent"), about) as traced:
            return await self._answer(scope, receive, send, traced)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, traced: Any) -> None:
        """`traced`: the request's span, whose name is its route's once that is known."""
        headers, request_id = Headers(scope=scope), scope["bco_request_id"]
        limit_bytes = self._limit_bytes(scope["path"])
        status, began = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._send_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if refused := self._refused(scope["method"], headers, limit_bytes):
                return await JSONResponse(refused.body, refused.status)(scope, receive, send_with_id)
            return await self._app(scope, _counted(receive, limit_bytes), send_with_id)
        except (asyncio.CancelledError, ClientDisconnect):
            status = status or _CLIENT_LEFT
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._served(route, status or 500, time.perf_counter() - began)
            if traced is not None:
                traced.update_name(f"{scope['method']} {route}")
                traced.set_attribute("http.response.status_code", status or 500)

    def _limit_bytes(self, path: str) -> int:
        below = (limit for place, limit in self._larger.items() if place.endswith("/") and path.startswith(place))
        return self._larger.get(path) or next(below, MAX_BODY_BYTES)

    def _refused(self, method: str, headers: Headers, limit_bytes: int) -> ApiError | None:
        """Why nothing is done. A page may send some kinds of requests anywhere; it only cannot read the reply."""
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin is not None and not self._may_send(origin, headers.get("host", "")):
            message = f"Pages of {origin[:128]} may not send this; those of `cors_origins` may."
            return ApiError(403, message, code="origin_not_allowed")
        if _announced_bytes(headers) > limit_bytes:
            return ApiError(413, _too_large(limit_bytes), code="body_too_large")
        return None

    def _may_send(self, origin: str, host: str) -> bool:
        return bool({origin, "*"} & self._origins) or _authority(origin) == host.lower()


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


def _counted(receive: Receive, limit_bytes: int) -> Receive:
    """Ends a body that goes on for too long. FastAPI passes this kind of error on."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit_bytes:
            raise HTTPException(413, _too_large(limit_bytes))
        return message

    return counted


def _too_large(limit_bytes: int) -> str:
    return f"The body exceeds {limit_bytes} bytes."


def _authority(origin: str) -> str | None:
    """`host:port` of an origin; None for one that has no host (`null`)."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _announced_bytes(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdigit() and len(length) < 20 else 0
