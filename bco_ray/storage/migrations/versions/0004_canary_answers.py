"""Which answers a canary's share decided. Of those from before nobody knows, and they count in no trial."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """See `tables`."""
    op.add_column("completions", sa.Column("canary_percent", sa.Double))
