"""The feedback log: every answer the server gave, and every vote on one, durable before the caller hears of it.

Votes are events. Changing one's mind appends another, withdrawing appends one with label None; the last event of a
(response, choice, user) is the one that counts. Safe for threads and for processes that open their own log (not for a
log carried through a fork).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from bco_ray.errors import ConflictError, StorageError
from bco_ray.storage.tables import (
    ERASED,
    completions,
    later_votes,
    open_database,
    reading,
    votes,
    writing,
)


class NotFoundError(StorageError):
    """No such answer, choice or vote."""


@dataclass(frozen=True)
class Choice:
    """One sampled answer. `token_ids` are all sampled ids, the end token included if it came (`ended`)."""

    text: str
    token_ids: list[int]
    finish_reason: str
    ended: bool = False


@dataclass(frozen=True)
class Completion:
    """One answered request. `model` is the exact version (`name/3`); `endpoint` is `chat` or `text`."""

    id: str
    created_at: float
    model: str
    system_fingerprint: str
    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    choices: list[Choice]
    sampling: dict[str, Any]
    user: str | None = None
    tools: list[dict[str, Any]] | None = None
    endpoint: str = "chat"


class Vote(BaseModel):
    """What a voter says: label True is thumbs-up, False thumbs-down, None takes an earlier vote back."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    response_id: str = Field(min_length=1, max_length=128)
    label: bool | None
    choice_index: int = Field(default=0, ge=0, le=1023)
    comment: str | None = Field(default=None, max_length=4096)
    tags: list[str] = Field(default_factory=list, max_length=32)
    correction: str | None = Field(default=None, max_length=1 << 16)
    user: str | None = Field(default=None, max_length=256)
    source: str | None = Field(default=None, max_length=64)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _storable(self) -> Vote:
        require_storable(self)
        return self

    @property
    def body_hash(self) -> str:
        """Equal for equal votes; what tells a replayed request from a reused key."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class VoteEvent:
    """A stored vote. `effective`: no later event of the same (response, choice, user); `model` gave the answer."""

    seq: int
    id: str
    created_at: float
    model: str
    effective: bool
    vote: Vote


def require_storable(value: BaseModel) -> None:
    """Raises ValueError for what JSON, UTF-8 and so Parquet cannot hold: NaN, infinities, half surrogate pairs.

    Checked at the door, because one such row in the log would make every later export fail.
    """
    try:
        json.dumps(value.model_dump(), allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("text contains half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


Added = tuple[VoteEvent, bool]
"""The stored event, and whether this call stored it (False: a replay)."""


def new_completion_id(prefix: str = "chatcmpl") -> str:
    """Unguessable: whoever knows it may vote on the answer."""
    return f"{prefix}-{secrets.token_hex(16)}"


class FeedbackLog:
    """Reads and appends completions and votes in one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, storage: Path, url: str | None = None) -> FeedbackLog:
        """The log of a storage directory, created if missing. Raises StorageError."""
        return cls(open_database(storage, url))

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()

    def add_completion(self, completion: Completion) -> None:
        """Store an answer; it can be voted on from here on."""
        with writing(self.engine) as connection:
            connection.execute(sa.insert(completions).values(asdict(completion)))

    def get_completion(self, completion_id: str) -> Completion:
        """Raises NotFoundError."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(completions).where(completions.c.id == completion_id)).mappings().first()
        if row is None:
            raise NotFoundError(f"{completion_id}: no such response.")
        return Completion(**{**row, "choices": [Choice(**choice) for choice in row["choices"]]})

    def add_vote(self, vote: Vote, idempotency_key: str | None = None) -> Added:
        """Append one vote. The same key and body again returns the first event.

        Raises ConflictError if the key was used for another vote, NotFoundError for an unknown response or choice.
        """
        with writing(self.engine) as connection:
            return _append(connection, vote, idempotency_key)

    def add_votes(self, batch: Sequence[tuple[Vote, str | None]]) -> list[Added | StorageError]:
        """Append many votes in one transaction: per vote what `add_vote` would return, or the error it would raise."""
        with writing(self.engine) as connection:
            return [_append_or_error(connection, vote, key) for vote, key in batch]

    def get_vote(self, vote_id: str) -> VoteEvent:
        """Raises NotFoundError."""
        with reading(self.engine) as connection:
            return _one(connection, votes.c.id == vote_id, f"{vote_id}: no such vote.")

    def list_votes(
        self, *, response_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> tuple[list[VoteEvent], bool]:
        """Up to `limit` events in order, those after the event with id `after`; and whether there are more.

        Raises NotFoundError for an unknown `after`.
        """
        with reading(self.engine) as connection:
            query = _events().order_by(votes.c.seq).limit(limit + 1)
            if response_id is not None:
                query = query.where(votes.c.response_id == response_id)
            if after is not None:
                last = _one(connection, votes.c.id == after, f"after: {after}: no such vote.")
                query = query.where(votes.c.seq > last.seq)
            found = [_event(row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def delete_vote(self, vote_id: str) -> VoteEvent:
        """Take a vote back by appending a tombstone; one that no longer counts stays as it is. Returns the vote.

        Raises NotFoundError.
        """
        with writing(self.engine) as connection:
            event = _one(connection, votes.c.id == vote_id, f"{vote_id}: no such vote.")
            if event.effective and event.vote.label is not None:
                keep = {"response_id", "choice_index", "user", "source"}
                gone = {**event.vote.model_dump(include=keep), "label": None, "metadata": {"withdraws": vote_id}}
                _append(connection, Vote.model_validate(gone), None)
            return _one(connection, votes.c.id == vote_id, vote_id)


def _events() -> sa.Select[Any]:
    effective = sa.not_(later_votes().exists()).label("effective")
    return sa.select(votes, completions.c.model, effective).join(completions, completions.c.id == votes.c.response_id)


def _event(row: sa.RowMapping) -> VoteEvent:
    fields = {name: row[name] for name in Vote.model_fields}
    vote = Vote.model_validate({**fields, "user": row["user"] or None})
    return VoteEvent(row["seq"], row["id"], row["created_at"], row["model"], bool(row["effective"]), vote)


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool], missing: str) -> VoteEvent:
    row = connection.execute(_events().where(condition)).mappings().first()
    if row is None:
        raise NotFoundError(missing)
    return _event(row)


def _append(connection: sa.Connection, vote: Vote, key: str | None) -> Added:
    if key is not None and (earlier := _replayed(connection, vote, key)):
        return earlier, False
    _check_choice(connection, vote)
    vote_id = f"fb-{secrets.token_hex(12)}"
    facts = {"id": vote_id, "created_at": time.time(), "idempotency_key": key, "body_hash": vote.body_hash}
    connection.execute(sa.insert(votes).values({**vote.model_dump(), "user": vote.user or "", **facts}))
    return _one(connection, votes.c.id == vote_id, vote_id), True


def _append_or_error(connection: sa.Connection, vote: Vote, key: str | None) -> Added | StorageError:
    try:
        return _append(connection, vote, key)
    except (ConflictError, NotFoundError) as error:
        return error


def _replayed(connection: sa.Connection, vote: Vote, key: str) -> VoteEvent | None:
    query = sa.select(votes.c.id, votes.c.body_hash).where(votes.c.idempotency_key == key)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.body_hash != vote.body_hash:
        raise ConflictError(f"Idempotency-Key {key!r} was already used for another vote; use a new key.")
    return _one(connection, votes.c.id == row.id, row.id)


def _check_choice(connection: sa.Connection, vote: Vote) -> None:
    answer = completions.c
    query = sa.select(answer.choices, answer.user).where(answer.id == vote.response_id)
    choices, asker = connection.execute(query).tuples().first() or (None, None)
    if choices is None or asker == f"{ERASED}{vote.response_id}":
        raise NotFoundError(f"{vote.response_id}: no such response.")
    if vote.choice_index >= len(choices):
        raise NotFoundError(f"{vote.response_id}: no choice {vote.choice_index}; it has {len(choices)}.")
