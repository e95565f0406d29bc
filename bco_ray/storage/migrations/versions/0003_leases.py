"""Whose turn it is to look after the jobs, and an index of those on the cluster."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """See `job_tables`."""
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    held = sa.text("holds_cluster")
    op.create_index("jobs_on_cluster", "jobs", ["holds_cluster"], sqlite_where=held, postgresql_where=held)
