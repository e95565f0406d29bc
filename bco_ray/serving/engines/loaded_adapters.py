"""Which adapters an engine has loaded, how many requests use each, and which leave once nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from bco_ray.serving.engines.protocol import Adapter, EngineOverloadedError

Handle = TypeVar("Handle")


@dataclass
class _Loaded(Generic[Handle]):
    handle: Handle
    users: int = 0
    leaving: bool = False


class LoadedAdapters(Generic[Handle]):
    """At most `limit` at once; the idle one used longest ago makes room.

    `load` (raises ModelError) gives the handle requests carry, `unload` takes it back.
    """

    def __init__(
        self,
        load: Callable[[Adapter], Awaitable[Handle]],
        unload: Callable[[Handle], Awaitable[None]],
        *,
        limit: int,
    ) -> None:
        self._load = load
        self._unload = unload
        self._limit = limit
        self._loaded: dict[str, _Loaded[Handle]] = {}  # least recently used first
        self._changing = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded."""
        return tuple(self._loaded)

    async def load(self, adapter: Adapter) -> None:
        """Have it loaded. Raises ModelError if it cannot be, EngineOverloadedError if all that fit are in use."""
        loaded = await self._get(adapter)
        loaded.leaving = False

    async def unload(self, name: str) -> None:
        """Let it go as soon as nobody uses it."""
        if loaded := self._loaded.get(name):
            loaded.leaving = True
            await self._leave_if_idle(name, loaded)

    @asynccontextmanager
    async def lease(self, adapter: Adapter) -> AsyncIterator[Handle]:
        """The adapter, loaded first if need be, kept until the block ends. Raises as `load` does."""
        loaded = await self._get(adapter)
        loaded.users += 1
        try:
            yield loaded.handle
        finally:
            loaded.users -= 1
            await self._leave_if_idle(adapter.name, loaded)

    async def _get(self, adapter: Adapter) -> _Loaded[Handle]:
        """Nothing else runs between its return and the caller's next line, so what it returns is not taken away."""
        if adapter.name not in self._loaded:
            async with self._changing:
                if adapter.name not in self._loaded:
                    await self._make_room(adapter.name)
                    self._loaded[adapter.name] = _Loaded(await self._load(adapter))
                return self._loaded[adapter.name]
        loaded = self._loaded[adapter.name] = self._loaded.pop(adapter.name)  # used last
        return loaded

    async def _make_room(self, wanted: str) -> None:
        if len(self._loaded) < self._limit:
            return
        idle = next((name for name, loaded in self._loaded.items() if not loaded.users), None)
        if idle is None:
            raise EngineOverloadedError(f"{wanted}: all {self._limit} adapters that fit are in use.")
        await self._unload(self._loaded.pop(idle).handle)

    async def _leave_if_idle(self, name: str, loaded: _Loaded[Handle]) -> None:
        if loaded.leaving and not loaded.users and self._loaded.get(name) is loaded:
            del self._loaded[name]
            async with self._changing:
                await self._unload(loaded.handle)
