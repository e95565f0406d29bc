"""What `/openapi.json` says: beside each route what is its own (`about`), here what all share (`install`).

A reply's fields are in `replies` modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from bco_ray.web.access import OPEN_PATHS, Require
from bco_ray.web.replies import ErrorReply

Json = dict[str, Any]

TAGS = {
    "models": "The versions that are served.",
    "chat": "Asking them.",
    "feedback": "Thumbs on their answers.",
    "files": "Uploads that jobs train on.",
    "fine-tuning": "Training jobs.",
    "registry": "Versions, and what their names mean.",
    "webhooks": "Being told when a job has ended.",
    "service": "For probes, Prometheus and whoever looks around.",
}


REFUSALS = {
    400: ("BadRequest", "Not JSON, not implemented, or not possible."),
    401: ("Unauthorized", "No API key came along, or an unknown, expired or revoked one."),
    403: ("Forbidden", "The key's role does not allow it, the name is another project's, or a foreign page asks."),
    404: ("NotFound", "Unknown, or another project's."),
    408: ("TimedOut", "The time of the request is over."),
    409: ("Conflict", "Not possible as things stand now, or an idempotency key of another request."),
    410: ("Gone", "Too old to be voted on."),
    413: ("TooLarge", "The body is too large."),
    422: ("Invalid", "A field or parameter does not fit; `param` names it."),
    429: ("TooMany", "Too many requests a minute, too many jobs, a full queue, or a quota that is used up."),
    500: ("ServerError", "The server made a mistake; the request id names it in its log."),
    503: ("Unavailable", "The engine or the storage cannot be used right now; try again."),
}
"""Every status that is an error: its name in the document, and when it comes."""

_HEADERS = {"RequestId": ("x-request-id", "Names the request in the server's log."),
            "RetryAfter": ("retry-after", "Seconds to wait."),
            "Authenticate": ("www-authenticate", "`Bearer`.")}  # fmt: skip
_SENT_WITH = {401: ("Authenticate",), 429: ("RetryAfter",)}

_MEANING = {
    "after": "The id that the page before ended with.",
    "before": "Only what is newer than the one of this id.",
    "limit": "The page has at most so many.",
    "idempotency-key": "Sent again with the same key: the same thing, not a second one.",
    "x-deadline-seconds": "What the answer may take, below the server's own limit.",
    "x-feedback-token": "The token that came with the answer.",
}
"""Of parameters, wherever they occur."""

_JSON = "application/json"


def about(
    operation_id: str, summary: str, reply: type[BaseModel] | None = None, *refused: int, also: Json | None = None
) -> Json:
    """Arguments of a route's decorator. `refused`: error statuses of its own; those that follow from what it takes, and
    from who may, come by themselves. `also`: more of the operation as it stands in the document.
    """
    responses: dict[int | str, Json] = {status: {} for status in refused}
    return {
        "operation_id": operation_id, "summary": summary, "response_model": reply, "responses": responses,
        "openapi_extra": also,
    }  # fmt: skip


def events(of: type[BaseModel], says: str) -> Json:
    """For `also`: besides JSON, a stream of these comes as server-sent events. `install` must be told of them too."""
    kinds = [_reference("schemas", name) for name in (of.__name__, ErrorReply.__name__)]
    data = {"type": "string", "contentMediaType": _JSON, "contentSchema": {"anyOf": kinds}}
    item = {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [data, {"const": "[DONE]"}]}}}
    return {"responses": {"200": {"description": says, "content": {"text/event-stream": {"itemSchema": item}}}}}


def install(api: FastAPI, streamed: Sequence[type[BaseModel]] = ()) -> None:
    """Have `/openapi.json` say of every route what all share."""
    bare = api.openapi

    def whole() -> Json:
        if api.openapi_schema is None:
            _complete(bare(), api, streamed)  # FastAPI keeps what it made
        return api.openapi_schema or {}

    api.openapi_tags = [{"name": name, "description": says} for name, says in TAGS.items()]
    api.openapi = whole  # type: ignore[method-assign]


def _complete(document: Json, api: FastAPI, streamed: Sequence[type[BaseModel]]) -> None:
    for route in api.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods:
                _describe(document["paths"][route.path_format][method.lower()], route)
    parts = document.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for fastapis in ("HTTPValidationError", "ValidationError"):
        schemas.pop(fastapis, None)
    parts |= {
        "schemas": dict(sorted((schemas | _schemas([ErrorReply, *streamed])).items())),
        "headers": {name: _header(says) for name, (_, says) in _HEADERS.items()},
        "responses": {name: _refusal(status, says) for status, (name, says) in REFUSALS.items()},
        "securitySchemes": {"api_key": _SCHEME},
    }


def _schemas(models: Sequence[type[BaseModel]]) -> Json:
    """Of those that are the reply of no route."""
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "serialization") for model in models]
    found: Json = models_json_schema(wanted, ref_template="#/components/schemas/{model}")[1]["$defs"]
    return found


_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "`sk-bco-...`, made by `bco keys create`. While there are no keys, this machine needs none.",
}


def _describe(operation: Json, route: APIRoute) -> None:
    """What a route has of all that is shared."""
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
        if meaning := _MEANING.get(parameter["name"].lower()):
            parameter.setdefault("description", meaning)
    answers: Json = operation["responses"]
    own = {int(status) for status in answers if status >= "400" and status != "422"}
    done = {status: {**answer, "headers": _sent(answer)} for status, answer in answers.items() if status < "400"}
    refused = {
        str(status): _reference("responses", REFUSALS[status][0])
        for status in sorted(own | set(_implied(operation, route)))
    }
    operation["responses"] = done | refused
    if route.path not in OPEN_PATHS:
        operation.setdefault("security", [{"api_key": [need.action for need in _needs(route.dependant)]}])


def _implied(operation: Json, route: APIRoute) -> Iterator[int]:
    """Error statuses that follow from what a route takes, and from who may."""
    yield 500
    if route.path not in OPEN_PATHS:
        yield from (401, 403, 429, 503)
    taken = [parameter["schema"] for parameter in operation.get("parameters", ())]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield 413
        taken.append(body["schema"])
        if kind == _JSON:
            yield 400
    if any(map(_can_be_wrong, taken)):
        yield 422


def _can_be_wrong(schema: Json) -> bool:
    """Whatever is sent is a string; everything else may not fit."""
    return schema.get("type") != "string" or bool(schema.keys() - {"type", "title"})


def _without_null(schema: Json) -> Json:
    """A parameter that is not sent is not null: no text means that."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else schema


def _needs(dependant: Dependant) -> list[Require]:
    found = [each.call for each in dependant.dependencies if isinstance(each.call, Require)]
    return found + [need for each in dependant.dependencies for need in _needs(each)]


def _refusal(status: int, says: str) -> Json:
    content = {_JSON: {"schema": _reference("schemas", "ErrorReply")}}
    return {"description": says, "content": content, "headers": _sent({}, *_SENT_WITH.get(status, ()))}


def _sent(answer: Json, *more: str) -> Json:
    named: Json = {_HEADERS[name][0]: _reference("headers", name) for name in ("RequestId", *more)}
    return {**named, **answer.get("headers", {})}


def _header(says: str) -> Json:
    return {"description": says, "required": True, "schema": {"type": "string"}}


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
