"""What the whole server is told: the model service's arguments, and the job service's."""

from __future__ import annotations

from pydantic import Field

from bco_ray.serving.args import ServeArgs


class ServiceArgs(ServeArgs):
    """`database`: a PostgreSQL URL for keys, files and jobs (else `bco.db`; the feedback log stays there). `max_jobs`
    on the cluster at once, and of one project. `allowed_places`: directories and URIs that jobs may name; none: every
    place as long as there are no API keys, then only what is registered or uploaded.
    `private_webhooks`: also to addresses inside.
    """

    database: str | None = None
    max_jobs: int = Field(default=8, ge=1)
    max_jobs_per_project: int | None = Field(default=None, ge=1)
    max_queued_jobs_per_project: int | None = Field(default=None, ge=1)
    allowed_places: list[str] | None = None
    private_webhooks: bool = False
