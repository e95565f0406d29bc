"""Thumbs on answers that a canary's share decided, per version: one for each answer, and for each person."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from bco_ray.storage.database import reading
from bco_ray.storage.sequential import Thumbs
from bco_ray.storage.tables import NOT_ERASED, completions, later_votes, votes


def thumbs_since(engine: sa.Engine, models: Collection[str], since: float, percent: float) -> dict[str, Thumbs]:
    """Votes that count on answers given since then, by version; only of answers that a canary of this share decided.

    An answer counts once, and so does a person on all answers of a version, with the first vote: who votes much would
    otherwise decide, and votes of one person are not independent. The person is who asked, by the request's `user`:
    what a vote says of its voter is anybody's to say. Asked without a name, each answer counts. Reads no more of the
    log than came since.
    """
    before = sa.select(votes.c.seq).where(votes.c.created_at < since).order_by(votes.c.seq.desc()).limit(1)
    query = (
        sa.select(completions.c.id, completions.c.model, completions.c.user, votes.c.label)
        .join(completions, completions.c.id == votes.c.response_id)
        .where(
            votes.c.seq > sa.func.coalesce(before.scalar_subquery(), 0),
            completions.c.model.in_(models),
            completions.c.created_at >= since,
            completions.c.canary_percent == percent,
            votes.c.label.is_not(None),
            sa.not_(later_votes().exists()),
            *NOT_ERASED,
        )
        .order_by(votes.c.seq)
    )
    counts = {model: [0, 0] for model in models}
    seen: set[tuple[str, ...]] = set()
    with reading(engine) as connection:
        for answer, model, user, label in connection.execute(query):
            who = (model, user) if user else (answer,)
            if who not in seen:
                seen.add(who)
                counts[model][0 if label else 1] += 1
    return {model: Thumbs(ups, downs) for model, (ups, downs) in counts.items()}
