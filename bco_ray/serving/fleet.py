"""Engines as Ray Serve applications: one per base, beside the gateway's own, without a route."""

from __future__ import annotations

import asyncio
import re
import time

from ray import serve
from ray.serve import RunTarget
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from bco_ray.errors import ServingError
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.engines.protocol import Engine
from bco_ray.serving.model import model_application
from bco_ray.serving.remote import RemoteEngine
from bco_ray.serving.versions.rollout import Home

PREFIX = "bco-model-"

_POLL_SECONDS = 0.25
_USABLE = {ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY}
"""Unhealthy: some replica cannot be replaced just now; whether the others answer is for the probe to find out."""

_DISTURBED = "not registered for pickle by value"
"""Serve notes in a table of the process what it pickles by value, for the moment, and its own threads take it away from
each other; nothing has been started then."""

_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): .+$", re.MULTILINE)


class ServeFleet:
    """See `Fleet`."""

    def __init__(self, args: ServeArgs) -> None:
        self._args = args

    async def ensure(self, home: Home) -> Engine:
        """See `Fleet.ensure`. Only what this call started is taken down if it does not get ready."""
        deadline, started = time.monotonic() + self._args.start_seconds, False
        try:
            while (status := await self._status(home)) not in _USABLE:
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"{home.directory}: the model was not ready within {self._args.start_seconds:.0f} s"
                    )
                if status is None:  # never was, or was just being taken down
                    started = True
                    await asyncio.to_thread(self._start, home)
                await asyncio.sleep(_POLL_SECONDS)
        except BaseException:
            if started:
                await self.remove(home.key)
            raise
        return engine_of(home.key, self._args)

    async def remove(self, key: str) -> None:
        """See `Fleet.remove`; its replicas end what they are doing first."""
        await asyncio.to_thread(serve.delete, key, _blocking=False)

    async def running(self) -> set[str]:
        """See `Fleet.running`; not those that are being taken down."""
        status = await asyncio.to_thread(serve.status)
        leaving = {ApplicationStatus.DELETING}
        return {n for n, a in status.applications.items() if n.startswith(PREFIX) and a.status not in leaving}

    def _start(self, home: Home) -> None:
        for last in (False, False, True):
            try:
                target = RunTarget(model_application(self._args, home), name=home.key, route_prefix=None)
                serve.run_many([target], wait_for_applications_running=False)
                return
            except ValueError as error:
                if last or _DISTURBED not in str(error):
                    raise

    async def _status(self, home: Home) -> ApplicationStatus | None:
        """None: there is no such application. Raises ServingError for one that does not start."""
        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(home.key)
        if application and application.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServingError(f"{home.directory}: the model did not start: {reason(application)}")
        return application.status if application else None


def engine_of(key: str, args: ServeArgs) -> Engine:
    """The engine of a running application."""
    return RemoteEngine(serve.get_app_handle(key), sleeps=args.min_replicas == 0)


def reason(application: ApplicationStatusOverview) -> str:
    """The last exception a deployment raised, else what Serve says about them."""
    messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
    raised = _EXCEPTION.findall("\n".join(messages))
    return raised[-1] if raised else " ".join(messages)
