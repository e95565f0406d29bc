"""The seam between the API and whatever generates tokens: one small protocol and the values that cross it.

The values are plain dataclasses, so the same protocol holds inside a process and across a Ray Serve handle.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bco_ray.errors import ServingError


class EngineOverloadedError(ServingError):
    """Too many requests wait already; come back later."""


class EngineDeadError(ServingError):
    """The engine cannot generate (it died, or it is stopping)."""


class RequestRefusedError(ServingError):
    """This one request cannot be served; others are unaffected."""


class DeadlineError(ServingError):
    """The answer was not done by its deadline."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that rows may ask for. `name` is its exact version (`helper/3`): it never means other weights."""

    name: str
    directory: Path


@dataclass(frozen=True)
class GenRequest:
    """One answer to sample. `token_ids`: the rendered prompt; temperature 0 takes the likeliest token; top_k 0 is off.

    The same seed gives the same answer; None draws one. A stop string ends the answer and is not part of its text.
    `logprobs` k asks for the log-probability of each new token and of the k likeliest (None: not asked for), before
    temperature and filters. `adapter` None: the engine's own weights. After `deadline` (unix seconds) the request
    fails, waiting or running. Slots are shared fairly between the values of `share` (an API key's id).
    """

    token_ids: list[int]
    max_new: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    adapter: Adapter | None = None
    deadline: float | None = None
    share: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of one new token, and the likeliest ones (id, logprob), best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TokenEvent:
    """What one step added: token ids, and the text that may be shown by now (perhaps none: it is held back while it
    could be half a character or the start of a stop string). The last event has the finish reason `stop` or `length`;
    `ended` tells the model's own end token from a stop string, which the trainer must not take for one. `logprobs` has
    one entry per token id where they were asked for. `cached` (in the first event): prompt tokens read from a cache.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    ended: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0

    def __add__(self, later: TokenEvent) -> TokenEvent:
        """Both in one."""
        ids, text, logprobs = self.token_ids + later.token_ids, self.text + later.text, self.logprobs + later.logprobs
        return TokenEvent(ids, text, later.finish_reason, later.ended, logprobs, self.cached + later.cached)


@dataclass(frozen=True)
class Health:
    """`ok` False: the engine will not recover by itself and must be replaced."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Load:
    """Requests in the running batch, and requests that wait for one; tokens that the running ones hold in the KV cache,
    and how many fit; loaded adapters. Counters since the start: prompt tokens, and those of them that a cache knew.
    """

    running: int
    waiting: int
    kv_tokens: int = 0
    kv_capacity: int = 0
    adapters: tuple[str, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Load) -> Load:
        """Of two engines together."""
        return Load(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


class Engine(Protocol):
    """Generates; knows nothing of HTTP, chat or the log."""

    async def start(self) -> None:
        """Load and get ready. Raises ModelError."""

    async def stop(self) -> None:
        """End; requests in flight fail with EngineDeadError."""

    def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """Sample one answer; closing the generator cancels.

        An adapter that is not loaded yet is loaded first. Raises (from the first step) EngineOverloadedError,
        EngineDeadError, DeadlineError or RequestRefusedError.
        """

    async def load_adapter(self, adapter: Adapter) -> None:
        """Have it ready before traffic needs it, beside what runs.

        Raises ModelError, or EngineOverloadedError if all adapters that fit are in use; then nothing has changed.
        """

    async def unload_adapter(self, name: str) -> None:
        """Forget it once no request uses it; unknown ones are no error."""

    async def health(self) -> Health:
        """Whether generation is possible."""

    async def load(self) -> Load:
        """How busy it is."""
