"""The seam between the API and whatever generates tokens: one small protocol and the values that cross it.

The values are plain dataclasses, so the same protocol holds inside a process and across a Ray Serve handle.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from bco_ray.errors import ServingError


class EngineOverloadedError(ServingError):
    """Too many requests wait already; come back later."""


class EngineDeadError(ServingError):
    """The engine cannot generate (it died, or it is stopping)."""


class RequestRefusedError(ServingError):
    """This one request cannot be served; others are unaffected."""


@dataclass(frozen=True)
class GenRequest:
    """One answer to sample. `token_ids`: the rendered prompt; temperature 0 takes the likeliest token; top_k 0 is off.

    The same seed gives the same answer; None draws one. A stop string ends the answer and is not part of its text.
    """

    token_ids: list[int]
    max_new: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenEvent:
    """What one step added: token ids, and the text that may be shown by now (perhaps none: it is held back while it
    could be half a character or the start of a stop string). The last event has the finish reason `stop` or `length`;
    `ended` tells the model's own end token from a stop string, which the trainer must not take for one.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    ended: bool = False


@dataclass(frozen=True)
class Health:
    """`ok` False: the engine will not recover by itself and must be replaced."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Load:
    """Requests in the running batch, and requests that wait for one."""

    running: int
    waiting: int


class Engine(Protocol):
    """Generates; knows nothing of HTTP, chat or the log."""

    async def start(self) -> None:
        """Load and get ready. Raises ModelError."""

    async def stop(self) -> None:
        """End; requests in flight fail with EngineDeadError."""

    def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """Sample one answer; closing the generator cancels.

        Raises (from the first step) EngineOverloadedError, EngineDeadError or RequestRefusedError.
        """

    async def health(self) -> Health:
        """Whether generation is possible."""

    async def load(self) -> Load:
        """How busy it is."""
