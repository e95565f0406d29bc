"""Which adapters an engine has loaded, how many requests use each, and which leave once nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from bco_ray.errors import ModelError
from bco_ray.serving.engines.protocol import Adapter

Handle = TypeVar("Handle")


@dataclass
class _Loaded(Generic[Handle]):
    handle: Handle
    users: int = 0
    leaving: bool = False


class LoadedAdapters(Generic[Handle]):
    """At most `limit` at once. `load` (raises ModelError) gives the handle requests carry, `unload` takes it back."""

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
        self._loaded: dict[str, _Loaded[Handle]] = {}
        self._changing = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded."""
        return tuple(self._loaded)

    async def load(self, adapter: Adapter) -> None:
        """Have it loaded, and keep it. Raises ModelError if it cannot be loaded or there is no room."""
        loaded = await self._get(adapter)
        loaded.leaving = False

    async def unload(self, name: str) -> None:
        """Let it go as soon as nobody uses it."""
        if loaded := self._loaded.get(name):
            loaded.leaving = True
            await self._leave_if_idle(name, loaded)

    @asynccontextmanager
    async def lease(self, adapter: Adapter) -> AsyncIterator[Handle]:
        """The adapter, loaded first if need be, kept until the block ends. Raises ModelError."""
        loaded = await self._get(adapter)
        loaded.users += 1
        try:
            yield loaded.handle
        finally:
            loaded.users -= 1
            await self._leave_if_idle(adapter.name, loaded)

    async def _get(self, adapter: Adapter) -> _Loaded[Handle]:
        """Nothing else runs between its return and the caller's next line, so what it returns is not taken away."""
        if loaded := self._loaded.get(adapter.name):
            return loaded
        async with self._changing:
            if adapter.name not in self._loaded:
                if len(self._loaded) >= self._limit:
                    raise ModelError(f"{adapter.name}: {self._limit} adapters are loaded already; unload one first.")
                self._loaded[adapter.name] = _Loaded(await self._load(adapter))
            return self._loaded[adapter.name]

    async def _leave_if_idle(self, name: str, loaded: _Loaded[Handle]) -> None:
        if loaded.leaving and not loaded.users and self._loaded.get(name) is loaded:
            del self._loaded[name]
            async with self._changing:
                await self._unload(loaded.handle)
