"""Every error as OpenAI's envelope `{"error": {message, type, param, code}}`, whoever raised it.

Routes raise `ApiError` or one of the project's own errors; FastAPI's and Starlette's are translated here too. What only
one part of the system raises, that part translates: a `Translator` beside `as_api_error`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from bco_ray.errors import BcoError, ConflictError, StorageError
from bco_ray.storage.feedback_rows import ExpiredError, NotFoundError
from bco_ray.telemetry import log_context, logger

UNSUPPORTED = "unsupported_parameter"
QUOTA = "insufficient_quota"
"""Both code and type, as OpenAI has it: other 429s go by themselves."""

_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_MAX_PARAM = 256


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
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        kind = "server_error" if self.status >= 500 else QUOTA if self.code == QUOTA else kind
        return {"error": {"message": _sendable(str(self)), "type": kind, "param": self.param, "code": self.code}}


Translator = Callable[[Exception], ApiError]


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about any error; an unforeseen one is told to the log, not to the client."""
    match error:
        case ApiError():
            return error
        case NotFoundError():
            return ApiError(404, str(error), code="not_found")
        case ExpiredError():
            return ApiError(410, str(error), code="expired")
        case ConflictError():
            return ApiError(409, str(error), code="idempotency_conflict", headers={"x-should-retry": "false"})
        case StorageError():
            return ApiError(503, "The storage cannot be used right now; try again.", code="storage_unavailable")
        case HTTPException():
            headers = dict(error.headers or {})
            return ApiError(error.status_code, str(error.detail), code=_CODES.get(error.status_code), headers=headers)
        case RequestValidationError():
            return invalid_body(error.errors())
    return ApiError(500, "The server made a mistake; the request id names it in the log.", code="internal_error")


def invalid_body(problems: Any) -> ApiError:
    """Malformed JSON and what is not implemented are 400, a field of the wrong kind 422; `param` names the first."""
    first: ErrorDetails = problems[0]
    if first["type"] == UNSUPPORTED:
        return ApiError(400, first["msg"], code=UNSUPPORTED, param=first["ctx"]["param"])
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"The body is not valid JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json"
        )
    param = ".".join(str(part) for part in first["loc"] if part != "body") or first.get("ctx", {}).get("param")
    param = param and _sendable(param[:_MAX_PARAM])
    if not param and isinstance(first["input"], bytes | str):  # what FastAPI makes of a body of another type
        return ApiError(422, "The body is not read as JSON; send Content-Type: application/json.", code="invalid_field")
    return ApiError(422, f"{param or 'body'}: {first['msg']}", code="invalid_field", param=param)


def unsupported(param: str, message: str) -> PydanticCustomError:
    """What a validator raises for a parameter that is not implemented: a 400, not a 422."""
    return PydanticCustomError(UNSUPPORTED, "{message}", {"param": param, "message": message})


def _sendable(text: str) -> str:
    """Half surrogate pairs, which no reply can hold, escaped."""
    return text.encode(errors="backslashreplace").decode()


def _allowed(request: Request) -> str:
    """Every method of this path; Starlette tells those of the first route that fits. The path itself comes before a
    pattern that it happens to fit.
    """
    path, routes = request.scope["path"], [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.path == path] or [r for r in routes if r.path_regex.match(path)]
    return ", ".join(sorted({method for route in fitting for method in route.methods or ()}))


def install(api: FastAPI, translate: Translator = as_api_error) -> None:
    """Handlers for all errors."""
    for kind in (ApiError, BcoError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, lambda request, error: _respond(request, error, translate(error)))


def _respond(request: Request, error: Exception, answer: ApiError) -> JSONResponse:
    request_id = request.scope.get("bco_request_id", "")
    if answer.status >= 500:
        unforeseen = error if answer.code == "internal_error" else None
        with log_context(request_id=request_id):  # an unforeseen one comes here from outside of Edge (edge.py)
            logger.error("request %s: %s", request_id, error, exc_info=unforeseen)
    headers = dict(answer.headers)
    if answer.status == 405:
        headers["Allow"] = _allowed(request)
    if answer.code == "internal_error" and request.scope.get("bco_sends_request_id"):
        headers["x-request-id"] = request_id  # as above
    return JSONResponse(answer.body, answer.status, headers)
