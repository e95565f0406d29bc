"""What a caller can do to jobs: ask for one, stop it, put it aside and take it up again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bco_ray.config import JobSpec
from bco_ray.control.files import FileStore
from bco_ray.control.job import Job, News, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.places import Places
from bco_ray.control.requests import Check, JobRequest, check_places, spec_of
from bco_ray.storage.registry import NAME

_FILE = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True)
class JobService:
    """Over the stores of one server."""

    jobs: JobStore
    files: FileStore
    storage: Path
    places: Places

    def create(
        self, request: JobRequest, *, project: str, key_id: str, idempotency_key: str | None = None,
        queued_limit: int | None = None,
    ) -> tuple[Job, bool]:  # fmt: skip
        """The job, and whether it is new. Raises SpecError, NotFoundError (of a file), and as `JobStore.create`."""
        spec, sent = self.spec_for(request, project), request.model_dump(mode="json", exclude_unset=True)
        order = Order(
            spec.name, project, key_id, sent, spec.model_dump(mode="json"), request.metadata or {}, body_hash(sent),
            request.priority, idempotency_key,
        )  # fmt: skip
        return self.jobs.create(order, queued_limit=queued_limit)

    def spec_for(self, request: JobRequest, project: str) -> JobSpec:
        """What the request means, under a new job's id as its name. Raises SpecError, NotFoundError (of a file)."""
        where = {"log": request.training_file, "register_as": _registered_name(request)}
        spec = spec_of(request, new_id("ftjob"), str(self.storage), **where)
        check_places(spec, self._allowed(request.training_file))
        data = spec.data.model_copy(update={"feedback": [self._log(project, request.training_file)]})
        return spec.model_copy(update={"data": data})

    def cancel(self, job_id: str, project: str | None) -> Job:
        """At once; its cluster is freed after its last checkpoint. Raises IllegalMoveError, NotFoundError."""
        return self.jobs.move(job_id, "cancelled", News("The job was cancelled."), project=project)

    def pause(self, job_id: str, project: str | None) -> Job:
        """Its cluster is freed after a checkpoint. Raises IllegalMoveError, NotFoundError."""
        return self.jobs.move(job_id, "paused", News("The job was paused."), project=project)

    def resume(self, job_id: str, project: str | None) -> Job:
        """From its newest checkpoint, when there is room. Raises IllegalMoveError, NotFoundError."""
        return self.jobs.move(job_id, "queued", News("The job was resumed."), project=project)

    def _log(self, project: str, training_file: str) -> str:
        return str(self.files.open(project, training_file)) if _FILE.fullmatch(training_file) else training_file

    def _allowed(self, training_file: str) -> Check:
        uploaded = _FILE.fullmatch(training_file)

        def check(field: str, place: str) -> None:
            if not (uploaded and place == training_file):
                self.places.check(field, place)

        return check


def _registered_name(request: JobRequest) -> str:
    """The suffix, else the name of the registered model, else the directory's."""
    if request.suffix:
        return request.suffix
    name = re.split(r"[@/]", request.model)[0] if re.match(NAME, request.model) else Path(request.model).name
    name = Path(request.model).name if request.model.startswith(("/", ".", "~")) or "://" in request.model else name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "model"
