"""The `Engine` protocol over a Ray Serve handle: Ray's failures become the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from bco_ray.errors import BcoError
from bco_ray.serving.engines.deadlines import before
from bco_ray.serving.engines.protocol import (
    Adapter,
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    Health,
    Load,
    TokenEvent,
)

_HEALTH_TIMEOUT_SECONDS = 5
_ADAPTER_TIMEOUT_SECONDS = 300
_TRIES = 3
_LOST = (RayActorError, DeploymentUnavailableError)


class RemoteEngine:
    """Talks to the replicas of a `Model` deployment. One that `sleeps` may have none, and must not be woken to be asked
    how it is.
    """

    def __init__(self, model: Any, *, sleeps: bool = False) -> None:
        self._model = model
        self._sleeps = sleeps

    async def start(self) -> None:
        """Serve starts the replica."""

    async def stop(self) -> None:
        """Serve stops the replica."""

    def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """See `Engine.generate`. The deadline counts here too: there may be no replica yet, or one that is stuck."""
        return before(request.deadline, self._events(request))

    async def _events(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        """A replica lost before it said anything is no reason to fail: another one is asked."""
        for attempt in range(1, _TRIES + 1):
            begun = False
            stream = self._model.options(stream=True).generate.remote(request)
            try:
                async for event in stream:
                    if isinstance(event, BcoError):
                        raise event
                    begun = True
                    yield event
                return
            except BackPressureError:
                raise EngineOverloadedError("too many requests wait for the model") from None
            except _LOST:
                if begun or attempt == _TRIES:
                    raise EngineDeadError("the model's process was lost; it is being replaced") from None
            finally:
                stream.cancel()

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `Engine.load_adapter`; with several replicas the others load it when they are first asked for it."""
        await self._told(self._model.load_adapter.remote(adapter), _ADAPTER_TIMEOUT_SECONDS)

    async def unload_adapter(self, name: str) -> None:
        """See `Engine.unload_adapter`."""
        await self._told(self._model.unload_adapter.remote(name), _ADAPTER_TIMEOUT_SECONDS)

    async def health(self) -> Health:
        """Not ok also if the replica cannot be asked."""
        if self._sleeps:
            return Health(True, "may sleep")
        try:
            return Health(**vars(await asyncio.wait_for(self._model.health.remote(), _HEALTH_TIMEOUT_SECONDS)))
        except (TimeoutError, BackPressureError, *_LOST) as error:
            return Health(False, str(_silent(error)))

    async def load(self) -> Load:
        """See `Engine.load`; of several replicas it is one's."""
        if self._sleeps:
            return Load(0, 0)
        try:
            return Load(**vars(await asyncio.wait_for(self._model.load.remote(), _HEALTH_TIMEOUT_SECONDS)))
        except (TimeoutError, BackPressureError, *_LOST) as lost:
            raise _silent(lost) from None

    async def _told(self, answer: Any, timeout_seconds: float) -> None:
        """Errors come as values, like those of `generate`."""
        try:
            error = await asyncio.wait_for(answer, timeout_seconds)
        except (TimeoutError, BackPressureError, *_LOST) as lost:
            raise _silent(lost) from None
        if error is not None:
            raise error


def _silent(lost: Exception) -> EngineDeadError:
    return EngineDeadError(f"the model does not answer ({type(lost).__name__})")
