"""What a caller can do to jobs: ask for one, stop it, put it aside, take it up again, do it again."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bco_ray.config.spec import JobSpec
from bco_ray.control.audit import Deed
from bco_ray.control.budget import overdrawn
from bco_ray.control.checking import holds_unlabelled_chats
from bco_ray.control.checkpoints import checkpoints_of
from bco_ray.control.files import FileStore, is_file_id
from bco_ray.control.job import ForeignModelError, IllegalMoveError, Job, News, Order, WaitingRoom, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.places import Check, Places, Use, check_places
from bco_ray.control.requests import JobRequest, RetryRequest, spec_again, spec_of
from bco_ray.control.states import ENDED
from bco_ray.errors import SpecError
from bco_ray.storage.export import export
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.files import path_of
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.registry import EVERYBODYS, NAME
from bco_ray.telemetry import traceparent


@dataclass(frozen=True)
class Asker:
    """Who asks for a job, how often it has said so (`idempotency_key`), and how many of its jobs may wait."""

    project: str
    key_id: str
    idempotency_key: str | None = None
    room: WaitingRoom = field(default_factory=WaitingRoom)


@dataclass(frozen=True)
class JobService:
    """Over the stores of one server, whose own directory is `state`; jobs write to `storage`. `actor`: a key's id, for
    the audit log. `check_quota` raises QuotaError if a key may spend no more; `owner_of` the name of a model: the
    project that registered it first, None if nobody knows.
    """

    jobs: JobStore
    files: FileStore
    state: Path
    storage: Path
    places: Places
    check_quota: Callable[[str], None] = lambda _: None
    owner_of: Callable[[str], str | None] = lambda _: None

    def create(self, request: JobRequest, asker: Asker) -> tuple[Job, bool]:
        """The job, and whether it is new. Raises QuotaError, as `spec_for`, and as `JobStore.create`."""
        sent = request.model_dump(mode="json", exclude_unset=True)
        digest = body_hash(sent)
        if before := self.jobs.made_before(asker.project, asker.idempotency_key, digest):
            return before, False  # its file, or its place, may be gone by now
        return self._order(self.spec_for(request, asker.project), sent, digest, request, asker)

    def spec_for(self, request: JobRequest, project: str) -> JobSpec:
        """What the request means, under a new job's id as its name. Raises SpecError, NotFoundError (of a file),
        ForeignModelError.
        """
        if request.training_file.startswith("file-") and not is_file_id(request.training_file):
            raise NotFoundError(f"{request.training_file}: no such file.")
        where = {"log": request.training_file, "register_as": _registered_name(request)}
        self._check_owner(where["register_as"], project)
        spec = spec_of(request, new_id("ftjob"), str(self.storage), **where)
        upload = request.training_file if is_file_id(request.training_file) else None
        check_places(spec, self._allowed(upload))
        path = self._log(project, request.training_file)
        if upload:
            _require_votes(spec, path_of(path), upload)
        return spec.model_copy(update={"data": spec.data.model_copy(update={"feedback": [path]})})

    def retry(self, job_id: str, request: RetryRequest, asker: Asker) -> tuple[Job, bool]:
        """A new job that goes on from a checkpoint of this one, which must not be at work any more; and whether it is
        new. Its budget is the same once more, if the request has none.

        Raises IllegalMoveError, SpecError, NotFoundError, ForeignModelError, QuotaError, and as `JobStore.create`.
        """
        again = request.model_dump(mode="json", exclude_unset=True)
        digest = body_hash({"retry": job_id, **again})
        if made := self.jobs.made_before(asker.project, asker.idempotency_key, digest):
            return made, False
        before = self.jobs.get(job_id, asker.project)
        if before.holds_cluster or before.status not in ENDED:
            raise IllegalMoveError(f"{job_id} is {before.status}: cancel it, and wait until it is off the cluster.")
        training_file = before.request["training_file"]
        path = self._log(asker.project, training_file)  # raises if it was deleted since
        step = self._step(job_id, request.step)
        resolved = JobDirectory(self.state, job_id).resolved or {"spec": before.spec}
        start = f"{Path(resolved['run']).name}:{step}" if step else None
        new = new_id("ftjob")
        asked = spec_again(before.spec, new, request, start)  # as it was asked for: what it resolved to is ours
        check_places(asked, self._allowed(path if is_file_id(training_file) else None))
        spec = spec_again(resolved["spec"], new, request, start)
        self._check_owner(spec.registry_name, asker.project)
        kept = {name: value for name, value in before.request.items() if name not in {"metadata", "priority"}}
        sent = {**kept, **again, "retry": {"job": job_id, "step": step}}
        if lacks := overdrawn(sent, {}):
            raise SpecError(f"budget: {lacks}; send another one (null: none).", "budget")
        return self._order(spec, sent, digest, request, asker)

    def cancel(self, job_id: str, project: str | None, actor: str) -> Job:
        """At once; its cluster is freed after its last checkpoint. Raises IllegalMoveError, NotFoundError."""
        news, deed = News("The job was cancelled."), Deed(actor, "job.cancel")
        return self.jobs.move(job_id, "cancelled", news, project=project, deed=deed)

    def pause(self, job_id: str, project: str | None, actor: str) -> Job:
        """Its cluster is freed after a checkpoint. Raises IllegalMoveError, NotFoundError."""
        news, deed = News("The job was paused."), Deed(actor, "job.pause")
        return self.jobs.move(job_id, "paused", news, project=project, deed=deed)

    def resume(self, job_id: str, project: str | None, actor: str) -> Job:
        """From its newest checkpoint, when there is room. Raises IllegalMoveError, NotFoundError, QuotaError."""
        paused = self.jobs.get(job_id, project)
        if paused.status == "paused":
            self.check_quota(paused.created_by)
        news, deed = News("The job was resumed."), Deed(actor, "job.resume")
        return self.jobs.move(job_id, "queued", news, project=project, was="paused", deed=deed, again_at=None)

    def _order(
        self, spec: JobSpec, sent: dict[str, Any], digest: str, request: JobRequest | RetryRequest,
        asker: Asker,
    ) -> tuple[Job, bool]:  # fmt: skip
        self.check_quota(asker.key_id)
        order = Order(
            spec.name, asker.project, asker.key_id, sent, spec.model_dump(mode="json"), request.metadata or {}, digest,
            request.priority, asker.idempotency_key, {"traceparent": trace} if (trace := traceparent()) else {},
        )  # fmt: skip
        training_file = sent["training_file"]
        return self.jobs.create(order, asker.room, file_id=training_file if is_file_id(training_file) else None)

    def _check_owner(self, name: str, project: str) -> None:
        """Who asks without a key is of no team, so a model of theirs is everybody's. Raises ForeignModelError."""
        if self.owner_of(name) not in {None, EVERYBODYS, project}:
            raise ForeignModelError(
                f"suffix: {name}: another project's model has this name, and versions under it would be served in its "
                "place. Send another suffix."
            )

    def _step(self, job_id: str, step: int | None) -> int | None:
        """Of the checkpoint that is meant. Raises SpecError if there is none of that step."""
        there = [checkpoint.step for checkpoint in checkpoints_of(self.state, job_id)]
        if step is not None and step not in there:
            raise SpecError(
                f"step: {job_id} has no checkpoint of step {step}; it has {', '.join(map(str, there)) or 'none'}."
            )
        return step or next(iter(there), None)

    def _log(self, project: str, training_file: str) -> str:
        if is_file_id(training_file):
            return str(self.files.open(project, training_file))
        if self.state != self.storage and training_file.partition(":")[0] == "feedback":
            with closing(FeedbackLog.open(self.state)) as log:  # it is not where jobs look for it
                export(log, self.storage / "feedback")
        return training_file

    def _allowed(self, upload: str | None) -> Check:
        """`upload`: the caller's own, which is allowed wherever it lies."""

        def check(field: str, place: str, use: Use) -> None:
            if use != "log" or place != upload:
                self.places.check(field, place, use)

        return check


def _require_votes(spec: JobSpec, path: Path, file_id: str) -> None:
    """Raises SpecError for examples alone, as OpenAI's supervised method takes them, under any other method.

    Of data that are no upload the job itself says so.
    """
    if spec.objective.loss != "sft" and spec.data.format == "auto" and holds_unlabelled_chats(path):
        raise SpecError(
            f"training_file: the conversations in {file_id} have no label; {spec.objective.loss} learns from votes. "
            'Send method {"type": "supervised"} to train on all of them as they are, or give each row a label (true or '
            "false, for its last message).",
            "training_file",
        )


def _registered_name(request: JobRequest) -> str:
    """The suffix, else the name of the registered model, else the directory's."""
    if request.suffix:
        return request.suffix
    name = re.split(r"[@/]", request.model)[0] if re.match(NAME, request.model) else Path(request.model).name
    name = Path(request.model).name if request.model.startswith(("/", ".", "~")) or "://" in request.model else name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "model"
