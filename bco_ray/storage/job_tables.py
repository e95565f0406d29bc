"""The tables of the job service, beside the feedback log's in one database. Their revisions are in `migrations`."""

from __future__ import annotations

import sqlalchemy as sa

from bco_ray.storage.tables import metadata

_HELD = sa.text("holds_cluster")

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
)
"""Who may. `secret_hash`: HMAC of the secret half; the key itself is shown once and kept nowhere. `limits`: what a
project may use. Times are unix seconds, in all tables.
"""

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
"""Who did what to whom, only ever appended. `actor`: a key's id, or who else it was."""

files = sa.Table(
    "files",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("status_details", sa.Text),
    sa.Column("deleted_at", sa.Double),
    sa.Index("files_by_project", "project", "seq"),
    sqlite_autoincrement=True,
)
"""Uploads; their bytes lie in `<storage>/files/<id>`. Deleted ones keep their row: jobs name them."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("body_hash", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("submission", sa.Text),
    sa.Column("holds_cluster", sa.Boolean, nullable=False),
    sa.Column("seen_at", sa.Double),
    sa.Column("again_at", sa.Double),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("outcome", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.UniqueConstraint("project", "idempotency_key"),
    sa.Index("jobs_by_project", "project", "seq"),
    sa.Index("jobs_by_status", "status"),
    sa.Index("jobs_on_cluster", "holds_cluster", sqlite_where=_HELD, postgresql_where=_HELD),
    sqlite_autoincrement=True,
)
"""One row per accepted training job; only `control/jobs` writes here.

`request`: what the client sent. `spec`: the JobSpec it means. `body_hash`: of the request, for its idempotency key.
`attempt`: submissions so far; `submission`: the newest one's id at Ray; `holds_cluster`: it may still run there;
`seen_at`: when Ray last said so; `again_at`: not submitted again before.
`details`: phase, percent, what is waited for. `outcome`: the registered model and its evaluation.
"""

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Index("events_by_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)
"""What happened to a job, only ever appended, in the transaction that made it happen."""

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("events", sa.JSON, nullable=False),
    sa.Column("deleted_at", sa.Double),
)
"""Where a project wants to be told. `secret`: what deliveries are signed with."""

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("webhook_id", sa.Text, sa.ForeignKey("webhooks.id"), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Double),
    sa.Column("delivered_at", sa.Double),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Index("deliveries_due", "next_at"),
    sqlite_autoincrement=True,
)
"""One event for one webhook. `next_at` NULL: delivered, or given up."""

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
"""Whose turn something is, and until when."""
