"""The Ray Serve application: a gateway with the HTTP API, and a model that generates. The door to `ray.serve`.

`bco_ray.serving.app:build` is what a Serve config's `import_path` names; its one parameter is the schema of `args`
(Serve reads that annotation at run time, so this module must not postpone its annotations).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from bco_ray.errors import ServingError
from bco_ray.serving.api import create_api
from bco_ray.serving.args import ServeArgs, Served, describe
from bco_ray.serving.engine import (
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    Health,
    Load,
    TokenEvent,
)
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.text import load_tokenizer

GATEWAY_REQUESTS = 1000
"""HTTP requests in progress in one gateway; the bound that matters is the engine's."""

_HEALTH_TIMEOUT_SECONDS = 5
_LOST = (RayActorError, DeploymentUnavailableError)


def build(args: ServeArgs) -> Application:
    """The application for one model version. Raises ModelError before anything is started if it cannot be served."""
    served = describe(args)
    capacity = args.max_batch + args.max_waiting
    model = serve.deployment(
        Model,
        max_ongoing_requests=2 * capacity,  # the engine turns away what it cannot queue, and says so
        max_queued_requests=2 * capacity,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config={"enable_access_log": False},  # the gateway has one; this would be a line per health check
    )
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        max_ongoing_requests=GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )
    return gateway.bind(args, served, model.bind(args, served))


class Model:
    """Holds the engine; an engine that is dead makes Serve replace the replica."""

    async def __init__(self, args: ServeArgs, served: Served) -> None:  # type: ignore[misc]  # Serve awaits it
        from bco_ray.serving.hf_engine import HFEngine  # the gateway imports this module and needs no weights

        self._engine = HFEngine(
            args.model_dir,
            context_window=served.context_window,
            max_batch=args.max_batch,
            max_waiting=args.max_waiting,
            threads=args.threads,
            device="cuda" if args.num_gpus else "cpu",
        )
        await self._engine.start()

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent | ServingError, None]:
        """See `Engine.generate`; Serve closes it when the caller leaves.

        What the engine raises is the last item: a raised error would reach the caller as Ray's traceback text.
        """
        async with aclosing(self._engine.generate(request)) as events:
            try:
                async for event in events:
                    yield event
            except ServingError as error:
                yield error

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


class Gateway:
    """Speaks HTTP, renders prompts, writes the log."""

    def __init__(self, args: ServeArgs, served: Served, model: DeploymentHandle) -> None:
        self._log = FeedbackLog.open(args.storage)
        self._served = served
        self._engine = RemoteEngine(model)
        self._tokenizer = load_tokenizer(served.tokenizer_dir)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook; its proxy sends `x-request-id` itself."""
        return create_api(self._engine, self._served, self._tokenizer, self._log, send_request_id=False)


class RemoteEngine:
    """The `Engine` protocol over a Serve handle: Ray's failures become the engine's."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def start(self) -> None:
        """Serve starts the replica."""

    async def stop(self) -> None:
        """Serve stops the replica."""

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent, None]:
        """See `Engine.generate`."""
        stream = self._model.options(stream=True).generate.remote(request)
        try:
            async for event in stream:
                if isinstance(event, ServingError):
                    raise event
                yield event
        except BackPressureError:
            raise EngineOverloadedError("too many requests wait for the model") from None
        except _LOST:
            raise EngineDeadError("the model's process was lost; it is being replaced") from None
        finally:
            stream.cancel()

    async def health(self) -> Health:
        """Not ok also if the replica cannot be asked."""
        try:
            return Health(**vars(await asyncio.wait_for(self._model.health.remote(), _HEALTH_TIMEOUT_SECONDS)))
        except (TimeoutError, BackPressureError, *_LOST) as error:
            return Health(False, f"the model does not answer ({type(error).__name__})")

    async def load(self) -> Load:
        """See `Engine.load`."""
        return Load(**vars(await asyncio.wait_for(self._model.load.remote(), _HEALTH_TIMEOUT_SECONDS)))
