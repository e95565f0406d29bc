"""Who is asking, as ASGI middleware: the caller's key, what it may do, and how often a minute.

Where keys are kept is not known here: `find` gives the key with a text, `configured` whether there ever was one. As
long as there was none everybody is `LOOPBACK`, who may everything: such a server must listen on loopback only, and
answers only who asks for it by a name of this machine (`hosts`).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bco_ray.errors import BcoError
from bco_ray.storage.registry import EVERYBODYS
from bco_ray.telemetry import log_context, logger
from bco_ray.web.errors import ApiError, as_api_error
from bco_ray.web.hosts import check_local

Action = Literal["infer", "vote", "read", "submit", "upload", "promote", "keys", "audit", "admin"]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
PAGE, PAGE_FILES = "/", "/console/"
"""The console's page, and what its files' paths begin with: sent without a key, since who has one enters it there."""

REMEMBERED_SECONDS = 5
"""How long a key that was found is not looked up again: a revoked one works for that long."""

LONGEST_HEADER_BYTES = 512


class Key(Protocol):
    """What a store of keys knows of one."""

    @property
    def id(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def queued_jobs(self) -> int | None: ...
    def may(self, action: Action, /) -> bool: ...


@dataclass(frozen=True)
class Caller:
    """Whose request it is; routes find it in `scope["bco_caller"]`."""

    key_id: str
    project: str
    role: str
    may: Callable[[Action], bool]
    requests_per_minute: int | None = None
    queued_jobs: int | None = None

    @classmethod
    def with_key(cls, key: Key) -> Caller:
        """Who presented it."""
        return cls(key.id, key.project, key.role, key.may, key.requests_per_minute, key.queued_jobs)


class Keys(Protocol):
    """Where keys are kept."""

    def find(self, presented: str, /) -> Key | None: ...
    def any(self) -> bool: ...


class Audit(Protocol):
    """Writes down what a caller has done to what. `action` as in `model.promote`; `facts` are small and no secrets."""

    def __call__(self, who: Caller, action: str, target: str, **facts: Any) -> None: ...


def no_audit(who: Caller, action: str, target: str, **facts: Any) -> None:
    """Where nobody keeps such a log."""


class NoKeys:
    """Nobody has one: everybody who reaches the port may everything."""

    def find(self, presented: str, /) -> Key | None:
        """None."""
        return None

    def any(self) -> bool:
        """No."""
        return False


NO_KEYS = NoKeys()
LOOPBACK = Caller("loopback", EVERYBODYS, "admin", lambda _: True)
ANONYMOUS = Caller("anonymous", EVERYBODYS, "anonymous", lambda _: False)


@dataclass(frozen=True)
class Require:
    """A dependency that /openapi.json can ask what it requires."""

    action: Action

    async def __call__(self, request: Request) -> Caller:
        return permit(request, self.action)


def require(action: Action) -> Require:
    """For a route, `Depends(require("submit"))`: its caller. ApiError 403 if that one may not."""
    return Require(action)


def permit(request: Request, action: Action) -> Caller:
    """The caller. Raises ApiError: 401 for one without a key, 403 for one whose key does not allow it."""
    caller: Caller = request.scope["bco_caller"]
    if caller.may(action):
        return caller
    if caller is ANONYMOUS:
        raise _unauthorized("An API key is needed: send it as `Authorization: Bearer sk-bco-...`.")
    message = f"This needs a key whose role may {action}; the role of this one is {caller.role}."
    raise ApiError(403, message, code="insufficient_permissions")


class RequestRate:
    """At most so many requests of a key in any minute, counted by this process alone: replicas do not share it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._clock = clock

    def take(self, caller: Caller) -> dict[str, str]:
        """Count a request and return the headers that tell a limited key what is left. Raises ApiError 429.

        `reset`: when the oldest of the counted requests no longer counts.
        """
        limit = caller.requests_per_minute
        if limit is None:
            return {}
        item = RateLimitItemPerMinute(limit)
        free = self._limiter.hit(item, caller.key_id)
        reset_at, left = self._limiter.get_window_stats(item, caller.key_id)
        seconds = max(1, math.ceil(reset_at - self._clock()))
        headers = _rate_headers(limit, left, seconds)
        if not free:
            message = f"This key may send {limit} requests a minute; wait {seconds} s."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={**headers, "retry-after": str(seconds)})
        return headers


class Access:
    """Finds out who the caller is, refuses whom nobody knows and who asks too often."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        find: Callable[[str], Key | None],
        configured: Callable[[], bool],
        rate: RequestRate,
        open_paths: Collection[str] = OPEN_PATHS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._callers = _Callers(find, configured, clock)
        self._rate = rate
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        try:
            caller = await self._caller(scope)
            headers = self._rate.take(caller)
        except (ApiError, BcoError) as error:
            return await _refusal(scope, error)(scope, receive, send)
        scope["bco_caller"] = caller
        with log_context(project=caller.project):
            return await self._app(scope, receive, _adding(headers, send) if headers else send)

    async def _caller(self, scope: Scope) -> Caller:
        """Raises ApiError: 401, and 403 for a foreign caller or host. A page votes without a key: its route asks for
        the token that came with the answer.
        """
        if scope["path"] in self._open_paths and scope.get("method") in {"GET", "HEAD"}:
            return ANONYMOUS  # also while the database cannot be reached
        if not await self._callers.configured():
            check_local(scope)
            return LOOPBACK
        if _is_page(scope["path"]) and scope.get("method") in {"GET", "HEAD"}:
            return ANONYMOUS
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given and scope["path"] == "/v1/feedback" and scope.get("method") == "POST":
            return ANONYMOUS
        return await self._callers.with_key(_presented(given))


class _Callers:
    """Asks the store, in a thread, and remembers for a moment what it found (keys by their digest)."""

    def __init__(
        self, find: Callable[[str], Key | None], configured: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._find = find
        self._ask_configured = configured
        self._clock = clock
        self._found: dict[bytes, tuple[float, Caller]] = {}
        self._without_keys_until = -math.inf
        self._has_keys = False

    async def configured(self) -> bool:
        """Once there are keys, there are: a database that forgets them does not open the server."""
        asked_at = self._clock()
        if not self._has_keys and asked_at >= self._without_keys_until:
            self._has_keys = await asyncio.to_thread(self._ask_configured)
            self._without_keys_until = asked_at + REMEMBERED_SECONDS
        return self._has_keys

    async def with_key(self, presented: str) -> Caller:
        """Raises ApiError 401. Only what was found is remembered, so guesses fill no memory and a new key works."""
        digest, asked_at = hashlib.sha256(presented.encode()).digest(), self._clock()
        known = self._found.get(digest)
        if known is not None and asked_at < known[0]:
            return known[1]
        key = await asyncio.to_thread(self._find, presented)
        if key is None:
            self._found.pop(digest, None)
            raise _unauthorized("The API key is unknown, expired or revoked.")
        caller = Caller.with_key(key)
        self._found[digest] = asked_at + REMEMBERED_SECONDS, caller
        return caller


def _is_page(path: str) -> bool:
    return path == PAGE or path.startswith(PAGE_FILES)


def _presented(given: list[bytes]) -> str:
    """The key in the one `Authorization` header. Raises ApiError 401, which does not repeat it."""
    if not given:
        raise _unauthorized("An API key is needed: send it as `Authorization: Bearer sk-bco-...`.")
    if len(given) > 1:
        raise _unauthorized("There is more than one Authorization header; send one.")
    scheme, _, key = given[0].partition(b" ")
    if len(given[0]) > LONGEST_HEADER_BYTES or not given[0].isascii() or scheme.lower() != b"bearer":
        raise _unauthorized("The Authorization header is none of ours; send `Authorization: Bearer sk-bco-...`.")
    return key.strip().decode("ascii")


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _refusal(scope: Scope, error: Exception) -> JSONResponse:
    answer = as_api_error(error)
    if answer.status >= 500:
        logger.error("request %s: %s", scope.get("bco_request_id", ""), error)
    return JSONResponse(answer.body, answer.status, answer.headers)


def _rate_headers(limit: int, left: int, seconds: int) -> dict[str, str]:
    """As OpenAI's clients know them."""
    told = {"limit": str(limit), "remaining": str(left), "reset": f"{seconds}s"}
    return {f"x-ratelimit-{name}-requests": value for name, value in told.items()}


def _adding(headers: dict[str, str], send: Send) -> Send:
    """Of a reply's start."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
