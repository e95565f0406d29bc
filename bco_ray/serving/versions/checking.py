"""What a version must pass before traffic may reach it: its files, and one generation."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from bco_ray.errors import ServingError
from bco_ray.serving.engines.protocol import Engine, GenRequest
from bco_ray.serving.versions.rollout import Check
from bco_ray.serving.versions.routes import Route
from bco_ray.storage.local_copies import local_copy
from bco_ray.storage.registry import Registry
from bco_ray.text import load_tokenizer

_PROBE = "Say hello."
_PROBE_TOKENS = 8
_PROBE_SECONDS = 120


def check_version(storage: Path) -> Check:
    """A registered version has the bytes it was registered with; any has finite weights and a tokenizer that fits."""
    registry = Registry(storage)

    async def check(reference: str, directory: Path) -> None:
        from bco_ray.models.verifying import check_servable  # torch

        name, _, number = reference.rpartition("/")
        here = await asyncio.to_thread(local_copy, directory)
        if directory == registry.root / name / number:
            await asyncio.to_thread(registry.verify, name, int(number), here)
        await asyncio.to_thread(check_servable, here)

    return check


async def probe(engine: Engine, route: Route) -> None:
    """A greedy answer of a few tokens. Raises what the engine raises; ServingError if it does not come in time."""
    directory = await asyncio.to_thread(local_copy, route.served.tokenizer_dir, weights=False)
    tokenizer = await asyncio.to_thread(load_tokenizer, directory)
    ids = list(tokenizer(_PROBE)["input_ids"])[: max(1, route.served.context_window - _PROBE_TOKENS)]
    room = min(_PROBE_TOKENS, route.served.context_window - len(ids))
    request = GenRequest(ids, max_new=room, temperature=0.0, adapter=route.adapter, share="probe")
    try:
        async with asyncio.timeout(_PROBE_SECONDS), aclosing(engine.generate(request)) as events:
            async for _ in events:
                pass
    except TimeoutError:
        raise ServingError(f"{route.served.model_id}: did not generate within {_PROBE_SECONDS} s") from None
