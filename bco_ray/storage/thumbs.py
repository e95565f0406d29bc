"""Thumbs per version in the feedback log, each person's first."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from bco_ray.storage.database import reading
from bco_ray.storage.sequential import Thumbs
from bco_ray.storage.tables import NOT_ERASED, completions, later_votes, votes


def thumbs_since(engine: sa.Engine, models: Collection[str], since: float) -> dict[str, Thumbs]:
    """Votes that count on answers given since then, by version.

    A person who has voted on several answers of a version counts once there, with the first: who votes much would
    otherwise decide, and votes of one person are not independent. Without a name each vote counts. Reads no more of
    the log than came since.
    """
    before = sa.select(votes.c.seq).where(votes.c.created_at < since).order_by(votes.c.seq.desc()).limit(1)
    query = (
        sa.select(completions.c.model, votes.c.user, votes.c.label)
        .join(completions, completions.c.id == votes.c.response_id)
        .where(
            votes.c.seq > sa.func.coalesce(before.scalar_subquery(), 0),
            completions.c.model.in_(models),
            completions.c.created_at >= since,
            votes.c.label.is_not(None),
            sa.not_(later_votes().exists()),
            *NOT_ERASED,
        )
        .order_by(votes.c.seq)
    )
    counts = {model: [0, 0] for model in models}
    seen: set[tuple[str, str]] = set()
    with reading(engine) as connection:
        for model, user, label in connection.execute(query):
            if user and (model, user) in seen:
                continue
            seen.add((model, user))
            counts[model][0 if label else 1] += 1
    return {model: Thumbs(ups, downs) for model, (ups, downs) in counts.items()}
