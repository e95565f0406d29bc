"""What a caller can do to jobs: ask for one, stop it, put it aside and take it up again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bco_ray.control.audit import Deed
from bco_ray.control.files import FileStore, is_file_id
from bco_ray.control.job import Job, News, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.places import Places
from bco_ray.control.requests import Check, JobRequest, check_places, spec_of
from bco_ray.storage.registry import NAME


@dataclass(frozen=True)
class JobService:
    """Over the stores of one server. `actor`: a key's id, for the audit log."""

    jobs: JobStore
    files: FileStore
    storage: Path
    places: Places

    def create(
        self, request: JobRequest, *, project: str, key_id: str, idempotency_key: str | None = None,
        queued_limit: int | None = None,
    ) -> tuple[Job, bool]:  # fmt: skip
        """The job, and whether it is new. Raises SpecError, NotFoundError (of a file), and as `JobStore.create`."""
        job_id, sent = new_id("ftjob"), request.model_dump(mode="json", exclude_unset=True)
        spec = spec_of(
            request, job_id, str(self.storage), log=request.training_file, register_as=_registered_name(request)
        )
        check_places(spec, self._allowed(request.training_file))
        data = spec.data.model_copy(update={"feedback": [self._log(project, request.training_file)]})
        spec = spec.model_copy(update={"data": data})
        order = Order(
            job_id, project, key_id, sent, spec.model_dump(mode="json"), request.metadata or {}, body_hash(sent),
            request.priority, idempotency_key,
        )  # fmt: skip
        file_id = request.training_file if is_file_id(request.training_file) else None
        return self.jobs.create(order, queued_limit=queued_limit, file_id=file_id)

    def cancel(self, job_id: str, project: str | None, actor: str) -> Job:
        """At once; its cluster is freed after its last checkpoint. Raises IllegalMoveError, NotFoundError."""
        news, deed = News("The job was cancelled."), Deed(actor, "job.cancel")
        return self.jobs.move(job_id, "cancelled", news, project=project, deed=deed)

    def pause(self, job_id: str, project: str | None, actor: str) -> Job:
        """Its cluster is freed after a checkpoint. Raises IllegalMoveError, NotFoundError."""
        news, deed = News("The job was paused."), Deed(actor, "job.pause")
        return self.jobs.move(job_id, "paused", news, project=project, deed=deed)

    def resume(self, job_id: str, project: str | None, actor: str) -> Job:
        """From its newest checkpoint, when there is room. Raises IllegalMoveError, NotFoundError."""
        news, deed = News("The job was resumed."), Deed(actor, "job.resume")
        return self.jobs.move(job_id, "queued", news, project=project, deed=deed)

    def _log(self, project: str, training_file: str) -> str:
        return str(self.files.open(project, training_file)) if is_file_id(training_file) else training_file

    def _allowed(self, training_file: str) -> Check:
        uploaded = is_file_id(training_file)

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
