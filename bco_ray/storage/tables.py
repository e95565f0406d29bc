"""The tables of the feedback log. Completions never change; votes are only ever appended.

How they came to be is in `migrations`; a change here is a new revision there.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

completions = sa.Table(
    "completions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("system_fingerprint", sa.Text, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("tools", sa.JSON(none_as_null=True)),
    sa.Column("prompt_ids", sa.JSON, nullable=False),
    sa.Column("choices", sa.JSON, nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("canary_percent", sa.Double),
)
"""One row per answered request, committed before the answer's last byte leaves.

`canary_percent`: the share of the canary that decided who answers; NULL: none did, or the row is older than the column.
"""

votes = sa.Table(
    "votes",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("response_id", sa.Text, sa.ForeignKey("completions.id"), nullable=False),
    sa.Column("choice_index", sa.Integer, nullable=False),
    sa.Column("user", sa.Text, nullable=False),  # "" is the anonymous voter: NULLs would never equal each other
    sa.Column("label", sa.Boolean),
    sa.Column("source", sa.Text),
    sa.Column("comment", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("correction", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("idempotency_key", sa.Text, unique=True),
    sa.Column("body_hash", sa.Text, nullable=False),
    sa.Index("votes_by_voter", "response_id", "choice_index", "user", "seq"),
    sqlite_autoincrement=True,
)
"""One row per vote event; the last one of a (response_id, choice_index, user) counts. Label NULL: withdrawn."""


ERASED = "erased:"
"""Begins the `user` of an erased vote (then its seq) and of an erased completion (then its id). The rows stay, empty:
votes refer to completions, and exports to the last seq. Both are exact, so nobody becomes erased by a name they chose.
"""

NOT_ERASED = (
    votes.c.user != sa.literal(ERASED).concat(sa.cast(votes.c.seq, sa.Text)),
    sa.or_(completions.c.user.is_(None), completions.c.user != sa.literal(ERASED).concat(completions.c.id)),
)
"""Conditions on votes joined with their completions: something is left of both."""


def later_votes() -> sa.Select[tuple[int]]:
    """For a query on `votes`: the later events of the same (response, choice, user)."""
    later = votes.alias("later")
    same = (later.c[name] == votes.c[name] for name in ("response_id", "choice_index", "user"))
    return sa.select(later.c.seq).where(*same, later.c.seq > votes.c.seq).correlate(votes)
