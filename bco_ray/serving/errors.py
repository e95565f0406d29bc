"""Every error as OpenAI's envelope `{"error": {message, type, param, code}}`, whoever raised it, and the request id.

Routes raise `ApiError` or one of the project's own errors; FastAPI's and Starlette's are translated here too.
"""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bco_ray.errors import BcoError, ConflictError, StorageError
from bco_ray.serving.engine import EngineDeadError, EngineOverloadedError, RequestRefusedError
from bco_ray.storage.feedback_log import NotFoundError
from bco_ray.telemetry import logger

MAX_BODY_BYTES = 32 << 20

_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_TYPES = {429: "rate_limit_error"}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about any error; an unforeseen one is told to the log, not to the client."""
    match error:
        case ApiError():
            return error
        case EngineOverloadedError():
            return ApiError(429, str(error), code="overloaded", headers={"retry-after": "1"})
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_unavailable", headers={"retry-after": "2"})
        case RequestRefusedError():
            return ApiError(400, str(error), code="request_refused")
        case NotFoundError():
            return ApiError(404, str(error), code="not_found")
        case ConflictError():
            return ApiError(409, str(error), code="idempotency_conflict", headers={"x-should-retry": "false"})
        case StorageError():
            return ApiError(503, "The feedback log cannot be used right now.", code="storage_unavailable")
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), code=_CODES.get(error.status_code))
        case RequestValidationError():
            return invalid_body(error.errors())
    return ApiError(500, "The server made a mistake; the request id names it in the log.", code="internal_error")


def invalid_body(problems: Any) -> ApiError:
    """Malformed JSON is 400, a field of the wrong kind 422; `param` names the first bad field."""
    first: ErrorDetails = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"The body is not valid JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json"
        )
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    return ApiError(422, f"{param or 'body'}: {first['msg']}", code="invalid_field", param=param)


def install(api: FastAPI, *, send_request_id: bool) -> None:
    """Handlers for all errors, the body limit, and `x-request-id` (which Ray Serve's proxy sends itself)."""
    for kind in (ApiError, BcoError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, _respond)
    api.add_middleware(Edge, send_request_id=send_request_id)


def _respond(request: Request, error: Exception) -> JSONResponse:
    answer = as_api_error(error)
    request_id = request.scope.get("bco_request_id", "")
    if answer.status >= 500:
        unforeseen = error if answer.code == "internal_error" else None
        logger.error("request %s: %s", request_id, error, exc_info=unforeseen)
    headers = dict(answer.headers)
    if answer.code == "internal_error" and request.scope.get("bco_sends_request_id"):
        headers["x-request-id"] = request_id  # this handler runs outside of Edge
    return JSONResponse(answer.body, answer.status, headers)


class Edge:
    """ASGI middleware: gives the request an id and refuses bodies that say they are too large."""

    def __init__(self, app: ASGIApp, *, send_request_id: bool) -> None:
        self._app = app
        self._send_request_id = send_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id") or f"req-{secrets.token_hex(12)}"
        scope["bco_request_id"], scope["bco_sends_request_id"] = request_id, self._send_request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self._send_request_id:
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        if _announced_bytes(headers) > MAX_BODY_BYTES:
            refused = as_api_error(ApiError(413, f"The body exceeds {MAX_BODY_BYTES} bytes.", code="body_too_large"))
            return await JSONResponse(refused.body, 413)(scope, receive, send_with_id)
        return await self._app(scope, receive, send_with_id)


def _announced_bytes(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdigit() else 0
