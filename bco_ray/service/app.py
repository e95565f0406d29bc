"""The Ray Serve application of the whole server: `bco_ray.service.app:build` in a Serve config.

The gateways answer for models, files and jobs; one more process looks after the jobs. (Serve reads `build`'s
annotation at run time, so this module must not postpone its annotations.)
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from bco_ray.console import routes as console_routes
from bco_ray.control.archive import Archive
from bco_ray.control.audit import AuditLog
from bco_ray.control.canaries import Canaries
from bco_ray.control.delivering import Deliverer
from bco_ray.control.files import FileStore
from bco_ray.control.http import (
    audit_routes,
    data_routes,
    estimate_routes,
    files_routes,
    job_routes,
    schema_routes,
    webhook_routes,
)
from bco_ray.control.job import Job
from bco_ray.control.jobs import JobStore
from bco_ray.control.keys import KeyStore
from bco_ray.control.lease import Lease
from bco_ray.control.metrics import JobMetrics
from bco_ray.control.outgoing import Sender
from bco_ray.control.places import Places
from bco_ray.control.quotas import check_gpu_quota, used_up
from bco_ray.control.ray_jobs import RayJobs, cluster_session
from bco_ray.control.reconciler import Reconciler, Room
from bco_ray.control.service import JobService
from bco_ray.control.states import Status
from bco_ray.control.upkeep import Upkeep
from bco_ray.control.webhooks import Event, WebhookStore
from bco_ray.errors import ClusterError, StorageError
from bco_ray.feedback.statistics import LogSums
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.app import ON_HEAD, Gateway, application
from bco_ray.serving.http.api import Extension
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.storage.trials import Trials
from bco_ray.telemetry import configure_logging, logger
from bco_ray.telemetry.meters import Meters, NoMeters, RayMeters
from bco_ray.web.access import Caller, require

_LOOK_SECONDS = 1.0
_UPKEEP_SECONDS = 3600.0
_ARCHIVE_SECONDS = 60.0
_CANARY_SECONDS = 60.0
_STUCK_SECONDS = 300.0
_EVENTS: dict[Status, Event] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}


def build(args: ServiceArgs) -> Application:
    """The application. Raises ModelError before anything is started if there is nothing to serve."""
    jobs = serve.deployment(
        Jobs, num_replicas=1, ray_actor_options=ON_HEAD, logging_config={"enable_access_log": False}
    )
    return application(args, FullGateway, jobs.bind(args))


class FullGateway(Gateway):
    """Answers for files and jobs too. What happens to jobs is another process's business: they meet in the database."""

    def __init__(self, args: ServiceArgs, director: DeploymentHandle, jobs: DeploymentHandle) -> None:
        super().__init__(args, director)
        self._args = args

    def _extras(self) -> dict[str, Any]:
        engine = open_database(self._args.home, self._args.database)
        keys = KeyStore.open(self._args.home, self._args.database)
        return {"keys": keys, "more": extension(self._args, engine, keys, RayMeters())}


def extension(args: ServiceArgs, engine: sa.Engine, keys: KeyStore, meters: Meters = NoMeters()) -> Extension:
    """The job service's routes over these stores, and the console."""
    read, submit, upload = (require(action) for action in ("read", "submit", "upload"))
    files = FileStore(engine, args.storage / "files", lambda key: keys.limits(key).upload_bytes)
    webhooks, log = WebhookStore(engine), AuditLog(engine)
    service = JobService(
        job_store(engine, webhooks, meters), files, args.home, args.storage, _places(args, keys),
        check_quota=lambda key: check_gpu_quota(engine, key, keys.limits(key).gpu_hours_per_month),
        owner_of=Registry(args.storage).owner,
    )  # fmt: skip
    routers = [
        files_routes.router(files, caller=read, submit=upload),
        estimate_routes.router(service, submit=submit),
        schema_routes.router(caller=read),
        job_routes.router(service, caller=read, submit=submit, waiting_limit=args.max_queued_jobs_per_project),
        data_routes.router(service, summarize=summarized, caller=read, submit=submit),
        webhook_routes.router(webhooks, caller=submit, allow_private=args.private_webhooks),
        audit_routes.router(log, caller=require("audit")),
        console_routes.router(),
    ]
    asked = ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/")
    larger = {"/v1/files": files_routes.MAX_UPLOAD_BYTES, **dict.fromkeys(asked, job_routes.MAX_BODY_BYTES)}
    return Extension(routers, job_routes.as_api_error, larger, partial(write_down, log))


def summarized(state: Mapping[str, Any]) -> dict[str, Any]:
    """A log's statistics as people read them."""
    return LogSums.from_state(state).summary()


def _places(args: ServiceArgs, keys: KeyStore) -> Places:
    named, registry = args.allowed_places, Registry(args.storage)
    return Places(
        allowed=named or (),
        registered=lambda name: bool(registry.versions(name)),
        unguarded=lambda: named is None and not keys.any(),
        served=args.model_dir,
        own=[str(args.storage), str(args.home)],
    )


def write_down(log: AuditLog, who: Caller, action: str, target: str, **facts: Any) -> None:
    """What is done cannot be taken back because it could not be written down: then the server's own log has it."""
    try:
        log.record(project=who.project, actor=who.key_id, action=action, target=target, **facts)
    except StorageError as error:
        logger.error("not in the audit log: %s did %s to %s %s: %s", who.key_id, action, target, facts, error)


def job_store(engine: sa.Engine, webhooks: WebhookStore, meters: Meters = NoMeters()) -> JobStore:
    """Whoever ends a job, its project's webhooks will be told."""

    def ended(connection: sa.Connection, job: Job) -> None:
        webhooks.enqueue(connection, job.project, _EVENTS[job.status], {"id": job.id})

    return JobStore(engine, ended, JobMetrics(meters).changed)


class Jobs:
    """Looks after the jobs for as long as it lives; whoever replaces it goes on."""

    async def __init__(self, args: ServiceArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        engine = open_database(args.home, args.database)
        webhooks, meters = WebhookStore(engine), RayMeters()
        metrics = JobMetrics(meters)
        keys = KeyStore.open(args.home, args.database)
        room = Room(
            args.max_jobs, args.max_jobs_per_project, lambda key: keys.limits(key).running_jobs,
            lambda key: used_up(engine, key, keys.limits(key).gpu_hours_per_month),
        )  # fmt: skip
        store = job_store(engine, webhooks, meters)
        reconciler = Reconciler(store, RayJobs(args.home), args.home, room, metrics)
        upkeep = Upkeep(FileStore(engine, args.storage / "files"), webhooks)
        registry, log = Registry(args.storage), FeedbackLog.open(args.home)
        canaries = Canaries(registry, Trials(registry, log.engine), AuditLog(engine))
        turn = Lease(engine, "jobs", cluster_session())
        self._looked = time.monotonic()
        tasks = [
            every(_LOOK_SECONDS, partial(self._look, turn, reconciler), "the jobs cannot be looked after"),
            Deliverer(webhooks, Sender(allow_private=args.private_webhooks), told=metrics.delivered).run(),
            every(_UPKEEP_SECONDS, upkeep.run_once, "the upkeep failed"),
            every(_CANARY_SECONDS, partial(in_turn, turn, canaries.run_once), "the canaries cannot be looked after"),
        ]
        if args.archive is not None:
            archive = Archive(store, args.home, args.archive)
            kept = partial(in_turn, turn, archive.run_once)
            tasks.append(every(_ARCHIVE_SECONDS, kept, "the archive cannot be kept"))
        self._tasks = [asyncio.create_task(task) for task in tasks]

    async def check_health(self) -> None:
        """Serve's hook: one that looks no more is replaced, also where a look does not come to its end."""
        for task in self._tasks:
            if task.done():
                task.result()
        if time.monotonic() - self._looked > _STUCK_SECONDS:
            raise ClusterError(f"no look at the jobs has ended for {_STUCK_SECONDS:.0f} s; Ray may not answer.")

    def _look(self, turn: Lease, reconciler: Reconciler) -> None:
        """Another cluster on the same database may be looking after the jobs: it knows them, and this one does not."""
        try:
            if turn.held():
                reconciler.run_once(turn.held)
        finally:
            self._looked = time.monotonic()


def in_turn(turn: Lease, work: Callable[[], None]) -> None:
    """Where another cluster on the same database does it, nothing."""
    if turn.held():
        work()


async def every(seconds: float, work: Callable[[], None], failed: str) -> None:
    """In a thread, the first time at once; `failed`: what the log says beside the error."""
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception:  # noqa: BLE001  whatever it was, the next time may be better
            logger.exception(failed)
        await asyncio.sleep(seconds)
