"""Votes on their way into the log, many at a time: each is new, a replay of an earlier one, or refused.

A few statements for all of them, because a statement costs more than what it does for one vote.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from bco_ray.errors import ConflictError, StorageError
from bco_ray.storage.feedback_rows import Added, Ballot, ExpiredError, NotFoundError, Vote, VoteEvent, left_out
from bco_ray.storage.tables import ERASED, completions, later_votes, votes

PART_VOTES = 200
"""At most so many in one call of `cast`: SQLite allows some thousand parameters in a statement."""


def cast(connection: sa.Connection, ballots: Sequence[Ballot], oldest: float) -> list[Added | StorageError]:
    """Append votes in order, inside a write transaction; per vote what was stored, or why it was not.

    A used key, or no key and the standing vote of the same voter once more, is a replay. The errors: ConflictError (a
    key used for another vote), NotFoundError (no such answer or choice), ExpiredError (given before `oldest`).
    """
    part = _known(connection, ballots)
    settled = [_settled(part, vote, key, oldest) for vote, key in ballots]
    if part.new:
        connection.execute(sa.insert(votes), part.new)
    ids = {outcome for outcome in settled if isinstance(outcome, str)}
    found = connection.execute(_STORED, {"listed": json.dumps(list(ids))}).mappings() if ids else ()
    stored = {row["id"]: event(row) for row in found}
    created = {row["id"] for row in part.new}
    outcomes = list[Added | StorageError]()
    for outcome in settled:
        if isinstance(outcome, str):
            outcomes.append((stored[outcome], outcome in created))
            created.discard(outcome)
        else:
            outcomes.append(outcome)
    return outcomes


def find(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[VoteEvent]:
    """The stored events that fulfil a condition on `votes`, in order."""
    return [event(row) for row in connection.execute(events().where(condition).order_by(votes.c.seq)).mappings()]


def events() -> sa.Select[Any]:
    """A query whose rows `event` takes."""
    effective = sa.not_(later_votes().exists()).label("effective")
    return sa.select(votes, completions.c.model, effective).join(completions, completions.c.id == votes.c.response_id)


def event(row: sa.RowMapping) -> VoteEvent:
    """A row of `events`."""
    fields = {name: row[name] for name in Vote.model_fields}
    vote = Vote.model_construct(**{**fields, "user": row["user"] or None})  # it was checked when it came in
    return VoteEvent(row["seq"], row["id"], row["created_at"], row["model"], bool(row["effective"]), vote)


Voter = tuple[str, int, str]
"""Response, choice, user: whose last vote counts."""


@dataclass
class _Part:
    """What the log knows about some ballots, and what they add to it. Votes are (id, body hash) here."""

    answers: dict[str, sa.RowMapping]
    keyed: dict[str, tuple[str, str]]
    standing: dict[Voter, tuple[str, str]]
    new: list[dict[str, Any]] = field(default_factory=list)


def _known(connection: sa.Connection, ballots: Sequence[Ballot]) -> _Part:
    answers = connection.execute(_ANSWERS, {"listed": json.dumps([vote.response_id for vote, _ in ballots])})
    keys = [key for _, key in ballots if key is not None]
    keyed = connection.execute(_KEYED, {"listed": json.dumps(keys)}).tuples() if keys else ()
    voters = list({_voter(vote) for vote, _ in ballots})
    standing = connection.execute(_STANDING, {"listed": json.dumps(voters)}).tuples()
    return _Part(
        {row["id"]: row for row in answers.mappings()},
        {key: (vote_id, body_hash) for key, vote_id, body_hash in keyed},
        {(response, choice, user): (vote_id, its_hash) for response, choice, user, vote_id, its_hash in standing},
    )


_LISTED = sa.func.json_each(sa.bindparam("listed", type_=sa.Text)).table_valued("value", name="listed")
"""The values of a JSON list as a table: the statement stays the same however many there are, and is compiled once."""

_ANSWERS = sa.select(
    *(completions.c[name] for name in ("id", "user", "created_at", "sampling")),
    sa.func.json_array_length(completions.c.choices).label("size"),
).where(completions.c.id.in_(sa.select(_LISTED.c.value)))

_KEYED = sa.select(votes.c.idempotency_key, votes.c.id, votes.c.body_hash).where(
    votes.c.idempotency_key.in_(sa.select(_LISTED.c.value))
)

_STORED = events().where(votes.c.id.in_(sa.select(_LISTED.c.value)))

_VOTER = (votes.c.response_id, votes.c.choice_index, votes.c.user)

_CAST = votes.alias("cast")

_LAST = (
    sa.select(_CAST.c.seq)
    .where(*(_CAST.c[c.name] == sa.func.json_extract(_LISTED.c.value, f"$[{i}]") for i, c in enumerate(_VOTER)))
    .order_by(_CAST.c.seq.desc())
    .limit(1)
    .correlate(_LISTED)
)

_STANDING = (
    sa.select(*_VOTER, votes.c.id, votes.c.body_hash)
    .select_from(_LISTED)
    .join(votes, votes.c.seq == _LAST.scalar_subquery())
)
"""The last vote of each voter listed, found through `votes_by_voter` however many came before it."""


def _settled(part: _Part, vote: Vote, key: str | None, oldest: float) -> str | StorageError:
    """The id that the vote is stored under; `part` now knows it. Or why it is refused."""
    body_hash, voter = vote.body_hash, _voter(vote)
    if key in part.keyed:
        earlier, its_hash = part.keyed[key]
        if its_hash != body_hash:
            return ConflictError(f"Idempotency-Key {key!r} was already used for another vote; use a new key.")
        return earlier
    if refused := _refused(part.answers.get(vote.response_id), vote, oldest):
        return refused
    if key is None and voter in part.standing and part.standing[voter][1] == body_hash:
        return part.standing[voter][0]
    vote_id = f"fb-{secrets.token_hex(12)}"
    facts = {"id": vote_id, "created_at": time.time(), "idempotency_key": key, "body_hash": body_hash}
    part.new.append({**vote.model_dump(), "user": vote.user or "", **facts})
    part.standing[voter] = (vote_id, body_hash)
    if key is not None:
        part.keyed[key] = (vote_id, body_hash)
    return vote_id


def _refused(answer: sa.RowMapping | None, vote: Vote, oldest: float) -> StorageError | None:
    if answer is None or answer["user"] == f"{ERASED}{vote.response_id}":
        return NotFoundError(f"{vote.response_id}: no such response.")
    if answer["created_at"] < oldest or left_out(answer["sampling"]) == "expired":
        return ExpiredError(f"{vote.response_id}: too old; no votes are taken on it any more.")
    if vote.choice_index >= answer["size"]:
        return NotFoundError(f"{vote.response_id}: no choice {vote.choice_index}; it has {answer['size']}.")
    return None


def _voter(vote: Vote) -> Voter:
    return vote.response_id, vote.choice_index, vote.user or ""
