"""Thumbs per version in the feedback log: all that stand, and those that a canary's trial counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from bco_ray.storage.database import reading
from bco_ray.storage.sequential import Thumbs
from bco_ray.storage.tables import NOT_ERASED, completions, later_votes, votes

SIDE_BY_SIDE = "side-by-side"
"""The tag of a vote that says which of two answers is better, which is not how good each of them is."""

_COMPARED = sa.cast(votes.c.tags, sa.Text).like(f'%"{SIDE_BY_SIDE}"%')


def thumbs_since(engine: sa.Engine, models: Collection[str], since: float, percent: float) -> dict[str, Thumbs]:
    """Votes that count on answers given since then, by version; only of answers that a canary of this share decided.

    An answer counts once, and so does a person on all answers of a version, with the first vote: who votes much would
    otherwise decide, and votes of one person are not independent. The person is who asked, by the request's `user`:
    what a vote says of its voter is anybody's to say. Asked without a name, each answer counts. Comparisons do not: one
    of their two answers was asked for by name. Reads no more of the log than came since.
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
            sa.not_(_COMPARED),
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


@dataclass(frozen=True)
class VersionVotes:
    """On the answers of a version: votes that stand, how many of them are of comparisons, and of those that are not
    each person's first.
    """

    model: str
    up: int
    down: int
    side_by_side: int
    people: Thumbs


def votes_by_version(engine: sa.Engine) -> list[VersionVotes]:
    """By the version that answered. Without a name each vote is a person's."""
    voter = sa.func.coalesce(sa.func.nullif(votes.c.user, ""), votes.c.id)
    turn = sa.func.row_number().over(partition_by=(completions.c.model, _COMPARED, voter), order_by=votes.c.seq)
    standing = (
        sa.select(completions.c.model, votes.c.label, _COMPARED.label("compared"), turn.label("turn"))
        .join(votes, completions.c.id == votes.c.response_id)
        .where(sa.not_(later_votes().exists()), votes.c.label.is_not(None))
        .subquery()
    )
    first = sa.and_(standing.c.turn == 1, sa.not_(standing.c.compared))
    query = (
        sa.select(
            standing.c.model,
            *(sa.func.count().filter(standing.c.label.is_(label)) for label in (True, False)),
            sa.func.count().filter(standing.c.compared),
            *(sa.func.count().filter(first, standing.c.label.is_(label)) for label in (True, False)),
        )
        .group_by(standing.c.model)
        .order_by(standing.c.model)
    )
    with reading(engine) as connection:
        return [
            VersionVotes(model, up, down, compared, Thumbs(first_up, first_down))
            for model, up, down, compared, first_up, first_down in connection.execute(query)
        ]
