"""The deployment that holds an engine, and the application around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve import Application

from bco_ray.errors import BcoError, ServingError
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.engines.protocol import Adapter, Engine, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.pauses import keep_what_is_loaded
from bco_ray.serving.versions.rollout import Home
from bco_ray.telemetry import configure_logging


class Model:
    """Holds the engine; an engine that is dead makes Serve replace the replica."""

    async def __init__(self, args: ServeArgs, home: Home) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        self._engine = _engine(args, home)
        await self._engine.start()
        keep_what_is_loaded()

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent | BcoError]:
        """See `Engine.generate`; Serve closes it when the caller leaves.

        What the engine raises is the last item: a raised error would reach the caller as Ray's traceback text.
        """
        async with aclosing(self._engine.generate(request)) as events:
            try:
                async for event in events:
                    yield event
            except BcoError as error:
                yield error

    async def load_adapter(self, adapter: Adapter) -> BcoError | None:
        """See `Engine.load_adapter`; returns what that raises."""
        try:
            await self._engine.load_adapter(adapter)
        except BcoError as error:
            return error
        return None

    async def unload_adapter(self, name: str) -> None:
        """See `Engine.unload_adapter`."""
        await self._engine.unload_adapter(name)

    async def health(self) -> Health:
        """See `Engine.health`."""
        return await self._engine.health()

    async def load(self) -> Load:
        """See `Engine.load`."""
        return await self._engine.load()

    async def check_health(self) -> None:
        """Serve's hook: raises ServingError if generation is impossible."""
        health = await self._engine.health()
        if not health.ok:
            raise ServingError(health.detail)


def model_application(args: ServeArgs, home: Home) -> Application:
    """One base with its adapters; the engine turns away what it cannot queue, and says so, so Serve need not."""
    capacity = args.max_batch + args.max_waiting
    return serve.deployment(
        Model,
        max_ongoing_requests=2 * capacity,
        max_queued_requests=2 * capacity,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=args.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},  # the gateway has one; this would be a line per health check
        **_replicas(args),
    ).bind(args, home)


def _replicas(args: ServeArgs) -> dict[str, Any]:
    if args.min_replicas == args.max_replicas:
        return {"num_replicas": args.min_replicas}
    scaling = {
        "min_replicas": args.min_replicas,
        "max_replicas": args.max_replicas,
        "initial_replicas": max(1, args.min_replicas),
        "target_ongoing_requests": args.max_batch,
        "downscale_to_zero_delay_s": args.idle_seconds,
    }
    return {"autoscaling_config": scaling}


def _engine(args: ServeArgs, home: Home) -> Engine:
    """Imported here: who only describes the application needs neither torch nor vLLM."""
    bounds = {"max_batch": args.max_batch, "max_waiting": args.max_waiting, "max_adapters": args.max_adapters}
    if args.engine == "upstream":
        return _upstream(args, home)
    if args.engine == "vllm":
        from bco_ray.serving.engines.vllm.engine import VllmEngine

        return VllmEngine(home.directory, context_window=home.context_window, options=args.engine_options, **bounds)
    from bco_ray.serving.engines.batching.engine import HFEngine

    device = "cuda" if args.num_gpus else "cpu"
    return HFEngine(
        home.directory,
        context_window=home.context_window,
        threads=args.threads,
        device=device,
        stream_seconds=args.stream_seconds,
        **bounds,
    )


def _upstream(args: ServeArgs, home: Home) -> Engine:
    from bco_ray.serving.engines.upstream.engine import UpstreamEngine
    from bco_ray.storage.local_copies import local_copy
    from bco_ray.text import load_tokenizer

    assert args.upstream_url
    assert args.upstream_model
    return UpstreamEngine(
        args.upstream_url,
        args.upstream_model,
        load_tokenizer(local_copy(home.directory, weights=False)),
        api_key_variable=args.upstream_key_variable,
        max_in_flight=args.max_batch + args.max_waiting,
        max_adapters=args.max_adapters,
    )
