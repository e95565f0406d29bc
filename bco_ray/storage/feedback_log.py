"""The feedback log: every answer the server gave, and every vote on one, durable before the caller hears of it.

Votes are events. Changing one's mind appends another, withdrawing appends one with label None; the last event of a
(response, choice, user) is the one that counts. Safe for threads and for processes that open their own log (not for a
log carried through a fork).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bco_ray.errors import StorageError
from bco_ray.storage.casting import PART_VOTES, cast, event, events, find
from bco_ray.storage.database import open_database, reading, writing
from bco_ray.storage.feedback_rows import (
    Added,
    Ballot,
    Choice,
    Completion,
    ExpiredError,
    NotFoundError,
    Vote,
    VoteEvent,
    new_completion_id,
    require_storable,
)
from bco_ray.storage.tables import completions, votes

__all__ = [
    "Added",
    "Ballot",
    "Choice",
    "Completion",
    "ExpiredError",
    "FeedbackLog",
    "NotFoundError",
    "Vote",
    "VoteEvent",
    "new_completion_id",
    "require_storable",
]


class FeedbackLog:
    """Reads and appends completions and votes in one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, storage: Path, url: str | None = None) -> FeedbackLog:
        """The log of a storage directory, created if missing; `url` names another SQLite file. Raises StorageError."""
        if url is not None and not url.startswith("sqlite:///"):
            raise StorageError(f"{url.split(':')[0]}: not supported here; the feedback log lives in SQLite.")
        return cls(open_database(storage, url))

    @property
    def storage(self) -> Path:
        """The directory it lives in."""
        return Path(str(self.engine.url.database)).parent

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()

    def add_all(
        self, answers: Sequence[Completion], ballots: Iterable[Ballot], *, oldest: float = 0.0
    ) -> list[Added | StorageError]:
        """Store answers, which can be voted on from here on, and append votes, in one transaction.

        Per vote what was stored, or the error that `add_vote` would raise.
        """
        with writing(self.engine) as connection:
            if answers:
                connection.execute(sa.insert(completions), [completion_row(answer) for answer in answers])
            return [outcome for part in _parts(ballots) for outcome in cast(connection, part, oldest)]

    def add_completion(self, completion: Completion) -> None:
        """Store one answer."""
        self.add_all([completion], ())

    def add_vote(self, vote: Vote, idempotency_key: str | None = None) -> Added:
        """Append one vote. The same key and body again returns the first event, and so does, without a key, what
        already is the voter's vote.

        Raises ConflictError if the key was used for another vote, NotFoundError for an unknown response or choice.
        """
        (outcome,) = self.add_all((), [(vote, idempotency_key)])
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    def add_votes(self, batch: Iterable[Ballot]) -> list[Added | StorageError]:
        """Append many votes in one transaction: per vote what `add_vote` would return, or the error it would raise."""
        return self.add_all((), batch)

    def get_completion(self, completion_id: str) -> Completion:
        """Raises NotFoundError."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(completions).where(completions.c.id == completion_id)).mappings().first()
        if row is None:
            raise NotFoundError(f"{completion_id}: no such response.")
        return completion_of(row)

    def get_vote(self, vote_id: str) -> VoteEvent:
        """Raises NotFoundError."""
        with reading(self.engine) as connection:
            return _one(connection, vote_id, f"{vote_id}: no such vote.")

    def list_votes(
        self, *, response_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> tuple[list[VoteEvent], bool]:
        """Up to `limit` events in order, those after the event with id `after`; and whether there are more.

        Raises NotFoundError for an unknown `after`.
        """
        with reading(self.engine) as connection:
            query = events().order_by(votes.c.seq).limit(limit + 1)
            if response_id is not None:
                query = query.where(votes.c.response_id == response_id)
            if after is not None:
                query = query.where(votes.c.seq > _one(connection, after, f"after: {after}: no such vote.").seq)
            found = [event(row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def delete_vote(self, vote_id: str, *, oldest: float = 0.0) -> VoteEvent | None:
        """Take a vote back by appending a tombstone, and return that; one that no longer counts stays as it is (None).

        Raises NotFoundError, or ExpiredError if the answer takes no votes any more.
        """
        with writing(self.engine) as connection:
            stored = _one(connection, vote_id, f"{vote_id}: no such vote.")
            if not stored.effective or stored.vote.label is None:
                return None
            keep = {"response_id", "choice_index", "user", "source"}
            gone = {**stored.vote.model_dump(include=keep), "label": None, "metadata": {"withdraws": vote_id}}
            (outcome,) = cast(connection, [(Vote.model_validate(gone), None)], oldest)
            if isinstance(outcome, StorageError):
                raise outcome
            return outcome[0]


def completion_row(completion: Completion) -> dict[str, Any]:
    """As it lies in the table; the inverse of `completion_of`."""
    return {**vars(completion), "choices": [vars(choice) for choice in completion.choices]}


def completion_of(row: sa.RowMapping) -> Completion:
    """A whole row of the table."""
    return Completion(**{**row, "choices": [Choice(**choice) for choice in row["choices"]]})


def _one(connection: sa.Connection, vote_id: str, missing: str) -> VoteEvent:
    found = find(connection, votes.c.id == vote_id)
    if not found:
        raise NotFoundError(missing)
    return found[0]


def _parts(ballots: Iterable[Ballot]) -> Iterator[list[Ballot]]:
    rest = iter(ballots)
    while part := list(islice(rest, PART_VOTES)):
        yield part
