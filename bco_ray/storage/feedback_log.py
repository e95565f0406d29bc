"""The feedback log: every answer the server gave, and every vote on one, durable before the caller hears of it.

Votes are events. Changing one's mind appends another, withdrawing appends one with label None; the last event of a
(response, choice, user) is the one that counts. Safe for threads and for processes that open their own log (not for a
log carried through a fork).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
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

VALUES_PER_QUERY = 500
"""SQLite allows so many parameters and some more."""


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


@dataclass(frozen=True)
class LogErasure:
    """How many votes and answers an erasure emptied."""

    votes: int
    completions: int


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

    def erase(
        self, is_erased: Callable[[str], bool], ids: Collection[str], remember: Callable[[list[str]], None]
    ) -> LogErasure:
        """Empty the votes of these people and with these ids, what these people asked, and all votes on that.

        Rows stay, so that seq never moves back. `remember` is given the ids of the votes on answers that are emptied,
        before anything is: they may be somebody else's, and lie in files that know nothing of who asked.
        """
        with writing(self.engine) as connection:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")  # else the old bytes stay until forget_deleted
            people = [user for user in _users(connection) if is_erased(user)]
            asked = _found(connection, completions.c.id, completions.c.user, people)
            on_asked = _found(connection, votes.c.id, votes.c.response_id, asked)
            remember(on_asked)
            cast = _found(connection, votes.c.id, votes.c.user, people)
            gone = _found(connection, votes.c.seq, votes.c.id, {*ids, *on_asked, *cast}, votes.c.body_hash != "")
            _empty_votes(connection, gone)
            _empty_completions(connection, asked)
        return LogErasure(votes=len(gone), completions=len(asked))

    def forget_deleted(self) -> None:
        """Write the database anew: pages keep copies of rows that were once moved, the write-ahead log old pages.

        Takes as long, and as much free disk, as to copy it; writers wait. Raises StorageError if others are in the way.
        """
        with contextlib.closing(self.engine.raw_connection()) as connection:  # VACUUM may be in no transaction
            cursor = connection.cursor()
            try:
                cursor.execute("VACUUM")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise StorageError(f"{self.engine.url}: cannot be written anew: {error}. Run this again.") from None
        if busy:
            raise StorageError(f"{self.engine.url}: what was erased is still in its write-ahead log, which is in use. "
                               "Run this again.")  # fmt: skip


def _users(connection: sa.Connection) -> list[str]:
    """Every name in the log but those of the nameless."""
    both = sa.union(sa.select(votes.c.user), sa.select(completions.c.user))
    return [user for user in connection.execute(both).scalars() if user]


def _found(
    connection: sa.Connection,
    wanted: sa.Column[Any],
    key: sa.Column[Any],
    values: Iterable[str],
    *conditions: sa.ColumnElement[bool],
) -> list[Any]:
    """`wanted` of the rows whose `key` is one of `values`, in the order of `wanted`."""
    values, found = sorted(values), list[Any]()
    for start in range(0, len(values), VALUES_PER_QUERY):
        some = key.in_(values[start : start + VALUES_PER_QUERY])
        found += connection.execute(sa.select(wanted).where(some, *conditions)).scalars()
    return sorted(found)


def _empty_votes(connection: sa.Connection, seqs: Iterable[int]) -> None:
    nothing = dict.fromkeys(("label", "source", "comment", "correction", "idempotency_key"))
    for seq in seqs:
        empty: dict[str, Any] = {**nothing, "user": f"{ERASED}{seq}", "tags": [], "metadata": {}, "body_hash": ""}
        connection.execute(sa.update(votes).where(votes.c.seq == seq).values(empty))


def _empty_completions(connection: sa.Connection, ids: Iterable[str]) -> None:
    for name in ids:
        this = completions.c.id == name
        choices = connection.execute(sa.select(completions.c.choices).where(this)).scalar_one()
        empty: dict[str, Any] = {"messages": [], "tools": None, "prompt_ids": [], "sampling": {}}
        empty |= {"choices": [{**choice, "text": "", "token_ids": []} for choice in choices], "user": f"{ERASED}{name}"}
        connection.execute(sa.update(completions).where(this).values(empty))


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
