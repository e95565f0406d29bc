"""Erasing people and votes from the feedback log's database, down to the bytes that it leaves behind."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bco_ray.errors import StorageError
from bco_ray.storage.database import the_only_writer, writing
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.tables import ERASED, completions, votes

VALUES_PER_QUERY = 500
"""SQLite allows so many parameters and some more."""


@dataclass(frozen=True)
class LogErasure:
    """How many votes and answers an erasure emptied."""

    votes: int
    completions: int


def erase(
    log: FeedbackLog, is_erased: Callable[[str], bool], ids: Collection[str], remember: Callable[[list[str]], None]
) -> LogErasure:
    """Empty the votes of these people and with these ids, what these people asked, and all votes on that.

    Rows stay, so that seq never moves back. `remember` is given the ids of the votes on answers that are emptied,
    before anything is: they may be somebody else's, and lie in files that know nothing of who asked.
    """
    with writing(log.engine) as connection:
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


def forget_deleted(log: FeedbackLog) -> None:
    """Write the database anew: pages keep copies of rows that were once moved, the write-ahead log old pages.

    Takes as long, and as much free disk, as to copy it; writers wait. Raises StorageError if others are in the way.
    """
    alone = the_only_writer(log.engine.url)
    with alone, contextlib.closing(log.engine.raw_connection()) as connection:  # VACUUM may be in no transaction
        cursor = connection.cursor()
        try:
            cursor.execute("VACUUM")
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise StorageError(f"{log.engine.url}: cannot be written anew: {error}. Run this again.") from None
    if busy:
        raise StorageError(f"{log.engine.url}: what was erased is still in its write-ahead log, which is in use. "
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
