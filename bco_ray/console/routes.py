"""`/` and `/console/...`: pages for people. They hold nothing of anybody, so they are sent without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from bco_ray.console.assets import INDEX, MEDIA_TYPES, Asset, load
from bco_ray.web.errors import ApiError
from bco_ray.web.openapi import about

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing inline, nothing from elsewhere; and no text can become markup, whatever the page's own code tries."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "vary": "accept-encoding",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_UNNAMED = frozenset({INDEX, "icon.svg"})
"""Whose names stay when their content changes."""


_OPEN: dict[str, Any] = {"security": []}
_FILES = {"responses": {"200": {"content": {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES}}}}
"""For the schema."""


class _File(Response):
    media_type = MEDIA_TYPES[0]


def router() -> APIRouter:
    """Both routes."""
    routes, assets = APIRouter(tags=["service"]), load()

    @routes.get(
        "/", response_class=HTMLResponse, **about("retrieveConsole", "The console, a page for people", also=_OPEN)
    )
    async def page(request: Request) -> Response:
        return _reply(request, INDEX, assets[INDEX])

    @routes.get(
        "/console/{file}",
        response_class=_File,
        **about("retrieveConsoleFile", "What it is made of", None, 404, also={**_OPEN, **_FILES}),
    )
    async def part(request: Request, file: str) -> Response:
        if file not in assets:
            raise ApiError(404, f"{file[:128]}: no such file; reload the page.", code="not_found")
        return _reply(request, file, assets[file])

    return routes


def _reply(request: Request, name: str, asset: Asset) -> Response:
    headers = {**_HEADERS, "etag": asset.etag, "cache-control": _ASK_AGAIN if name in _UNNAMED else _FOR_EVER}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    packed = "gzip" in request.headers.get("accept-encoding", "")
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(
        asset.packed if packed else asset.body, headers=headers, media_type=f"{asset.media_type}; charset=utf-8"
    )
