"""What the whole server is told: the model service's arguments, and the job service's."""

from __future__ import annotations

from pydantic import Field, field_validator

from bco_ray.serving.args import ServeArgs


class ServiceArgs(ServeArgs):
    """`database`: a PostgreSQL URL for keys, files and jobs (else `bco.db`; the feedback log stays there). `max_jobs`
    on the cluster at once, and of one project. `allowed_places`: directories and URIs that jobs may name; none: every
    place as long as there are no API keys, then only what is registered or uploaded.
    `private_webhooks`: also to addresses inside. `archive`: a directory, s3:// or gs://, for logs and events of jobs.
    """

    database: str | None = None
    max_jobs: int = Field(default=8, ge=1)
    max_jobs_per_project: int | None = Field(default=None, ge=1)
    max_queued_jobs_per_project: int | None = Field(default=None, ge=1)
    allowed_places: list[str] | None = None
    private_webhooks: bool = False
    archive: str | None = Field(default=None, min_length=1)

    @field_validator("archive")
    @classmethod
    def _can_be_written_to(cls, archive: str | None) -> str | None:
        scheme, is_uri, _ = (archive or "").partition("://")
        if is_uri and scheme not in {"file", "s3", "gs"}:
            raise ValueError(f"{archive}: name a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
        return archive
