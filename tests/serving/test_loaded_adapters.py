"""Adapters that an engine holds: the idle one used longest ago makes room, one in use never does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bco_ray.serving.engines.loaded_adapters import LoadedAdapters
from bco_ray.serving.engines.protocol import Adapter, EngineOverloadedError

ONE, TWO, THREE = (Adapter(f"helper/{n}", Path(f"/{n}")) for n in (1, 2, 3))


def holding(limit: int, gone: list[str]) -> LoadedAdapters[str]:
    async def load(adapter: Adapter) -> str:
        return adapter.name

    async def unload(name: str) -> None:
        gone.append(name)

    return LoadedAdapters(load, unload, limit=limit)


def test_the_one_used_longest_ago_makes_room() -> None:
    gone: list[str] = []

    async def use() -> None:
        held = holding(2, gone)
        for adapter in (ONE, TWO, ONE, THREE):
            async with held.lease(adapter) as handle:
                assert handle == adapter.name
        assert held.names == ("helper/1", "helper/3")

    asyncio.run(use())
    assert gone == ["helper/2"]


def test_one_in_use_stays() -> None:
    gone: list[str] = []

    async def use() -> None:
        held = holding(1, gone)
        async with held.lease(ONE):
            with pytest.raises(EngineOverloadedError, match="in use"):
                await held.load(TWO)
        await held.load(TWO)

    asyncio.run(use())
    assert gone == ["helper/1"]
