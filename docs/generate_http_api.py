"""Writes docs/http-api.md from what the server says of itself: `python docs/generate_http_api.py`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bco_ray.control.keys import ROLES, KeyStore
from bco_ray.service.app import extension
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.http.api import create_api
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.web.openapi import TAGS

PAGE = Path(__file__).with_name("http-api.md")
COMMAND = "python docs/generate_http_api.py"

Json = dict[str, Any]

_HEAD = f"""# Every route of the server

Made from `/openapi.json` by `{COMMAND}`. What it means is in [http.md](http.md) and [jobs.md](jobs.md).

- Role: the least that a key must have ([jobs.md](jobs.md#who-may)). Without any keys this machine may everything.
- Types: `?` may be null; fields in **bold** must be sent, or are always there; after `=` stands the default.
- From 400 on the reply is an [ErrorReply](#errorreply). Besides the statuses given there may be 401, 403, 429, 500 and
  503 (of the probes only 500), and 413 for a body. `x-request-id` comes with every reply.
- A page of objects is `{{"object": "list", "data": [...], "has_more": ..., "first_id": ..., "last_id": ...}}`. It has
  at most `limit` of them; the next one comes with the `last_id` as `after`.
"""
_EVERYWHERE = {"401", "403", "413", "429", "500", "503"}


def document() -> Json:
    """`/openapi.json` of the whole server, without one."""
    with tempfile.TemporaryDirectory() as place:
        storage = Path(place)
        args = ServiceArgs(model_id="m/1", model_dir=storage, storage=storage)
        engine, keys, log = open_database(storage), KeyStore.open(storage), FeedbackLog.open(storage)
        try:
            return create_api(None, log, keys=keys, more=extension(args, engine, keys)).openapi()  # type: ignore[arg-type]
        finally:
            log.close()
            engine.dispose()


def page(api: Json) -> str:
    """The whole file: a table of routes per tag, then the objects that they speak of."""
    said = _Types(api["components"]["schemas"])
    parts = [_HEAD]
    for tag, says in TAGS.items():
        rows = [_route(said, *route) for route in _routes(api, tag)]
        parts += [f"## {tag}\n\n{says}\n", _table(("route", "role", "takes", "replies"), rows)]
    parts.append("## Objects\n")
    while waiting := said.named.keys() - said.shown:
        name = next(name for name in said.named if name in waiting)
        said.shown.add(name)
        parts.append(_object(said, name))
    return "\n".join(parts)


def _routes(api: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield method.upper(), path, operation


def _route(said: _Types, method: str, path: str, operation: Json) -> tuple[str, ...]:
    taken = [_parameter(said, each) for each in operation.get("parameters", ()) if each["in"] != "path"]
    body = operation.get("requestBody", {})
    for kind, content in body.get("content", {}).items():
        note = f". {body['description']}" if "description" in body else ""
        taken.append(f"body {_kind(kind)}{said.of(content['schema'])}{note}")
    answers = operation["responses"]
    replies = [f"{status} {_answer(said, reply)}" for status, reply in answers.items() if status < "400"]
    refused = [status for status in answers if status >= "400" and status not in _EVERYWHERE]
    return (
        f"`{method} {path}`<br>{operation['summary']}", _who(operation), "<br>".join(taken),
        "<br>".join([*replies, *([", ".join(refused)] if refused else [])]),
    )  # fmt: skip


def _parameter(said: _Types, parameter: Json) -> str:
    where = "header " if parameter["in"] == "header" else ""
    told = "description" in parameter and parameter["name"] not in ("after", "limit")
    meaning = f": {parameter['description']}" if told else ""
    kind = said.of(parameter["schema"])
    return f"{where}`{parameter['name']}`{'' if kind == 'string' else ' ' + kind}{meaning}"


def _who(operation: Json) -> str:
    if not (needs := operation.get("security")):
        return "open"
    actions = {action for need in needs for action in need.get("api_key", ())}
    role = next((role for role, may in ROLES.items() if actions & set(may)), "any")
    return f"{role}, or the answer's token" if {} in needs else role


def _kind(media: str) -> str:
    return "" if media == "application/json" else f"`{media}` "


def _answer(said: _Types, reply: Json) -> str:
    kinds = []
    for media, content in reply.get("content", {}).items():
        schema = content.get("schema", {})
        if "itemSchema" in content:
            schema = content["itemSchema"]["properties"]["data"]["anyOf"][0]["contentSchema"]["anyOf"][0]
        kinds.append(_kind(media) + ("" if schema == {"type": "string"} else said.of(schema)))
    return ", or ".join(kinds)


def _object(said: _Types, name: str) -> str:
    schema = said.schemas[name]
    required = schema.get("required", ())
    rows = [
        (f"**{field}**" if field in required else field, said.of(kind), kind.get("description", ""))
        for field, kind in schema.get("properties", {}).items()
    ]
    return f"### {name}\n\n{' '.join(schema.get('description', '').split())}\n\n{_table(('field', 'type', ''), rows)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "&#124;") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@dataclass
class _Types:
    """Schemas in words. `named`: the objects spoken of, in order; `shown`: those that have had their table."""

    schemas: Json
    named: dict[str, None] = field(default_factory=lambda: {"ErrorReply": None})
    shown: set[str] = field(default_factory=set)

    def of(self, schema: Json) -> str:
        """One of them."""
        if "$ref" in schema:
            return self._named(schema["$ref"].rsplit("/", 1)[1])
        default = f" = `{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
        if kinds := schema.get("anyOf"):
            words = [self.of(kind) for kind in kinds if kind != {"type": "null"}]
            return " or ".join(words) + ("?" if len(words) < len(kinds) else "") + default
        if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
            return ", ".join(f"`{json.dumps(value)}`" for value in values) + default
        return self._plain(schema) + _bounds(schema) + default

    def _plain(self, schema: Json) -> str:
        inner = schema.get("items") or schema.get("additionalProperties")
        kind = str(schema.get("type", "anything"))
        if fields := schema.get("properties"):
            return ", ".join(f"`{name}` {self.of(each)}" for name, each in fields.items())
        if kind in ("array", "object") and isinstance(inner, dict):
            return f"{'list' if kind == 'array' else 'object'} of {self.of(inner)}"
        return "file" if schema.get("format") == "binary" else kind

    def _named(self, name: str) -> str:
        if (base := name.removesuffix("Page")) != name:
            return f"page of {self._named(base)}"
        self.named[name] = None
        return f"[{name}](#{name.lower()})" if self.schemas[name] else "anything"


_BOUNDS = (
    (("minimum", "≥ "), ("maximum", "≤ "), ""),
    (("exclusiveMinimum", "> "), ("exclusiveMaximum", "< "), ""),
    (("minLength", "≥ "), ("maxLength", "≤ "), " characters"),
    (("minItems", "≥ "), ("maxItems", "≤ "), ""),
    (("", ""), ("maxProperties", "≤ "), ""),
)
_BEYOND = 1 << 31
"""Bounds from here on are what a number can be at all."""


def _bounds(schema: Json) -> str:
    """`1 to 100`."""
    words = []
    for (least, above), (most, below), unit in _BOUNDS:
        low, high = (f"{schema[n]:,.12g}" if abs(schema.get(n, _BEYOND)) < _BEYOND else "" for n in (least, most))
        if low and high:
            words.append(f"{low} to {high}{unit}")
        elif low or high:
            words.append(f"{above}{low}{unit}" if low else f"{below}{high}{unit}")
    return f" ({', '.join(words)})" if words else ""


if __name__ == "__main__":
    PAGE.write_text(page(document()))
