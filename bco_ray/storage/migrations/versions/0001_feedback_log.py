"""The feedback log. Databases made before there were revisions have these tables already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Both tables, where they are not there."""
    if sa.inspect(op.get_bind()).has_table("completions"):
        return
    op.create_table(
        "completions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("system_fingerprint", sa.Text, nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("tools", sa.JSON),
        sa.Column("prompt_ids", sa.JSON, nullable=False),
        sa.Column("choices", sa.JSON, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("user", sa.Text),
    )
    op.create_table(
        "votes",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("response_id", sa.Text, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("choice_index", sa.Integer, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("label", sa.Boolean),
        sa.Column("source", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("correction", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.Text, unique=True),
        sa.Column("body_hash", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("votes_by_voter", "votes", ["response_id", "choice_index", "user", "seq"])
