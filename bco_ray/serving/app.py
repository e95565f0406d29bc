"""The Ray Serve application: gateways that speak HTTP, and a director that decides which models there are.

`bco_ray.serving.app:build` is what a Serve config's `import_path` names; its one parameter is the schema of `args`
(Serve reads that annotation at run time, so this module must not postpone its annotations). The models are
applications of their own (`model.py`), which the director starts and ends: a new one is loaded and tried beside the
old one, then the table flips, then the old one drains.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from bco_ray.errors import BcoError, ModelError
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.fleet import ServeFleet, engine_of
from bco_ray.serving.http.api import create_api
from bco_ray.serving.http.settings import Settings
from bco_ray.serving.metrics import Metrics
from bco_ray.serving.pauses import keep_what_is_loaded
from bco_ray.serving.versions.checking import check_version, probe
from bco_ray.serving.versions.rollout import Rollout
from bco_ray.serving.versions.routed import RoutedCatalog
from bco_ray.serving.versions.routes import Table
from bco_ray.serving.versions.wanted import wanted
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.telemetry import configure_logging, logger

GATEWAY_REQUESTS = 5000
"""HTTP requests in progress in one gateway; the bound that matters is the engine's."""

ON_HEAD: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""Of who reads and writes the server's own directory: a disk of the head's, which is all that it takes."""

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5


def build(args: ServeArgs) -> Application:
    """The application. Raises ModelError before anything is started if there is nothing to serve."""
    return application(args, Gateway)


def application(args: ServeArgs, gateway: type[Any], *parts: Application) -> Application:
    """Around gateways of this class, which get `parts` too. Raises ModelError."""
    if not wanted(args).names:
        names = ", ".join(args.follow)
        raise ModelError(f"{names}: no version has passed its gate yet; evaluate one, or promote one with --force.")
    director = serve.deployment(
        Director,
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    gateways = serve.deployment(
        serve.ingress()(gateway),
        name="Gateway",
        num_replicas=args.gateways,
        max_ongoing_requests=GATEWAY_REQUESTS,
        ray_actor_options=ON_HEAD,
        graceful_shutdown_timeout_s=args.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return gateways.bind(args, director.bind(args), *parts)


class Director:
    """Follows the registry; the gateways ask it for the table and tell it what they are doing."""

    async def __init__(self, args: ServeArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        self._args = args
        self._fleet = ServeFleet(args)
        self._rollout = Rollout(args, self._fleet, check_version(args.storage), probe)
        self._task = asyncio.create_task(self._follow())

    async def table(self, gateway: str, known: Table, in_flight: dict[str, int]) -> Table | None:
        """A gateway's report, answered by the table once it is newer than the known one, or by None after a moment."""
        self._rollout.heard(gateway, known, in_flight)
        return await self._rollout.newer(known.generation, _POLL_SECONDS)

    async def check_health(self) -> None:
        """Serve's hook: a director that follows no more is replaced."""
        if self._task.done():
            self._task.result()

    async def _follow(self) -> None:
        await asyncio.sleep(3 * _POLL_SECONDS if await self._fleet.running() else 0)  # for gateways that know more
        await self._rollout.adopt()
        while True:
            try:
                await self._rollout.follow(await asyncio.to_thread(wanted, self._args))
            except BcoError as error:  # a registry that cannot be read now: what is served stays served
                logger.error("the models cannot be followed: %s", error)
            except Exception:  # noqa: BLE001  whatever it was, the next look may be better
                logger.exception("the models cannot be followed")
            await self._rollout.rest(self._args.poll_seconds)


class Gateway:
    """Speaks HTTP, renders prompts, writes the log."""

    def __init__(self, args: ServeArgs, director: DeploymentHandle) -> None:
        configure_logging()
        self._name = uuid.uuid4().hex
        self._log = FeedbackLog.open(args.home)
        self._director = director
        self._settings = Settings.of(args)
        self._metrics = metrics = Metrics()
        self._catalog = RoutedCatalog(
            lambda home: engine_of(home, args), lambda table: metrics.switched(table.names, len(table.refused))
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook; its proxy sends `x-request-id` itself."""
        api = create_api(
            self._catalog, self._log, self._settings, metrics=self._metrics, send_request_id=False, **self._extras()
        )
        inner = api.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
            following = asyncio.create_task(self._follow())
            async with inner(app) as state:
                yield state
            following.cancel()

        api.router.lifespan_context = lifespan
        return api

    def _extras(self) -> dict[str, Any]:
        """More arguments of `create_api`, for whoever puts more on this port."""
        return {}

    async def _follow(self) -> None:
        catalog = self._catalog
        while True:
            try:
                table = await self._director.table.remote(self._name, catalog.table, dict(catalog.in_flight))
                if table:
                    await catalog.switch(table)
                    keep_what_is_loaded()
            except (RayActorError, DeploymentUnavailableError, BcoError) as error:
                logger.warning("no news from the director (%s); what was served is served on", error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:  # noqa: BLE001  whatever it was, the next look may be better
                logger.exception("the table cannot be used; what was served is served on")
                await asyncio.sleep(_RETRY_SECONDS)
