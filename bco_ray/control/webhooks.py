"""Who wants to be told what, and what is still to be told: webhooks and their deliveries, in the database.

A delivery is written in the transaction that makes its event happen, so neither is there without the other.
`delivering` sends what is due.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa

from bco_ray.control.audit import record
from bco_ray.storage.database import reading, writing
from bco_ray.storage.feedback_rows import NotFoundError, is_storable
from bco_ray.storage.job_tables import webhook_deliveries, webhooks

Event = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]

_SECRET_BYTES = 32
_MAX_SHOWN = 128

_hooks, _sent = webhooks.c, webhook_deliveries.c


class UnknownCursorError(NotFoundError):
    """`after` names nothing in this list."""


@dataclass(frozen=True)
class Webhook:
    """Where a project wants to be told, and of what. Its secret is shown once, by `create`. Times: unix seconds."""

    id: str
    created_at: float
    url: str
    events: Sequence[str]


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook. `next_at` None: delivered, or given up."""

    id: str
    webhook_id: str
    created_at: float
    event: str
    attempts: int
    next_at: float | None
    delivered_at: float | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True)
class Taken:
    """A delivery that its taker alone may send now, for the `attempts`-th time."""

    id: str
    webhook_id: str
    url: str
    secret: str = field(repr=False)
    payload: str
    attempts: int


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt. `last_status` None: nobody answered."""

    last_status: int | None
    last_error: str | None
    delivered_at: float | None
    next_at: float | None


class WebhookStore:
    """A project sees its own only: another's are as if they were not there (NotFoundError)."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self._clock = clock

    def create(self, project: str, url: str, events: Iterable[Event], *, actor: str = "server") -> tuple[Webhook, str]:
        """The webhook and its secret (`whsec_...`), which is never shown again. `url` has passed `check_url`.

        `actor`: for the audit log, as in `delete`; of the URL it is told the host, the rest may be a secret.
        """
        made = Webhook(f"wh_{secrets.token_hex(12)}", self._clock(), url, list(dict.fromkeys(events)))
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
        with writing(self.engine) as connection:
            connection.execute(sa.insert(webhooks).values(**vars(made), project=project, secret=secret))
            facts = {"host": urlsplit(url).hostname, "events": made.events}
            record(connection, project=project, actor=actor, action="webhook.create", target=made.id, **facts)
        return made, secret

    def list(self, project: str, after: str | None = None, limit: int = 100) -> tuple[Sequence[Webhook], bool]:
        """Up to `limit`, the newest first, those behind the one with id `after`; and whether there are more.

        Raises UnknownCursorError; an `after` that was deleted meanwhile is known.
        """
        query = _webhooks_of(project).where(_hooks.deleted_at.is_(None))
        query = query.order_by(_hooks.created_at.desc(), _hooks.id.desc()).limit(limit + 1)
        with reading(self.engine) as connection:
            if after is not None:
                last = _anchor(connection, _webhooks_of(project).where(_hooks.id == after), after)
                query = query.where(sa.tuple_(_hooks.created_at, _hooks.id) < sa.tuple_(last["created_at"], after))
            found = [Webhook(**row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def get(self, project: str, webhook_id: str) -> Webhook:
        """Raises NotFoundError."""
        with reading(self.engine) as connection:
            return _get(connection, project, webhook_id)

    def delete(self, project: str, webhook_id: str, *, actor: str = "server") -> None:
        """Nothing more is sent to it, and its deliveries cannot be seen. Raises NotFoundError."""
        with writing(self.engine) as connection:
            _get(connection, project, webhook_id)
            gone = sa.update(webhooks).where(_hooks.id == webhook_id)
            connection.execute(gone.values(deleted_at=self._clock(), secret=""))
            waiting = sa.update(webhook_deliveries).where(_sent.webhook_id == webhook_id, _sent.next_at.is_not(None))
            connection.execute(waiting.values(next_at=None, last_error="the webhook was deleted"))
            record(connection, project=project, actor=actor, action="webhook.delete", target=webhook_id)

    def enqueue(self, connection: sa.Connection, project: str, event_type: Event, data: Mapping[str, Any]) -> None:
        """One delivery for each webhook that asked for this, in the transaction that makes the event happen."""
        now = self._clock()
        payload = _payload(event_type, now, data)
        rows = [_new(webhook_id, now, event_type, payload) for webhook_id in _asked(connection, project, event_type)]
        if rows:
            connection.execute(sa.insert(webhook_deliveries), rows)

    def deliveries(
        self, project: str, webhook_id: str, after: str | None = None, limit: int = 100
    ) -> tuple[Sequence[Delivery], bool]:
        """As `list`. Raises NotFoundError, UnknownCursorError."""
        query = sa.select(*_told()).where(_sent.webhook_id == webhook_id)
        page = query.order_by(_sent.seq.desc()).limit(limit + 1)
        with reading(self.engine) as connection:
            _get(connection, project, webhook_id)
            if after is not None:
                page = page.where(_sent.seq < _anchor(connection, query.where(_sent.id == after), after)["seq"])
            found = [_delivery(row) for row in connection.execute(page).mappings()]
        return found[:limit], len(found) > limit

    def forget(self, before: float) -> int:
        """Remove what was delivered before then (unix seconds), or made before then and given up; how many it was."""
        over = _sent.next_at.is_(None), sa.func.coalesce(_sent.delivered_at, _sent.created_at) < before
        with writing(self.engine) as connection:
            return connection.execute(sa.delete(webhook_deliveries).where(*over)).rowcount

    def take(self, now: float, *, until: float, most: int, busy: Collection[str], tries: int) -> Sequence[Taken]:
        """Up to `most` that are due, the oldest of each webhook that is not `busy`; nobody else gets them `until` then.

        Each is counted as an attempt now, and the last of its `tries` is never due again: one that takes its sender
        down does so so many times only.
        """
        with reading(self.engine) as connection:
            due = connection.execute(_due(now, most, busy)).mappings().all()
        if not due:
            return []
        with writing(self.engine) as connection:
            return [_taken(row) for row in due if _claimed(connection, row, until, tries)]

    def record(self, taken: Taken, outcome: Outcome) -> None:
        """What became of it; of no effect if somebody has taken it again since."""
        still = _sent.id == taken.id, _sent.attempts == taken.attempts
        with writing(self.engine) as connection:
            connection.execute(sa.update(webhook_deliveries).where(*still).values(**vars(outcome)))


def _webhooks_of(project: str) -> sa.Select[Any]:
    return sa.select(_hooks.id, _hooks.created_at, _hooks.url, _hooks.events).where(_hooks.project == project)


def _get(connection: sa.Connection, project: str, webhook_id: str) -> Webhook:
    query = _webhooks_of(project).where(_hooks.id == webhook_id, _hooks.deleted_at.is_(None))
    row = connection.execute(query).mappings().first() if is_storable(webhook_id) else None
    if row is None:
        raise NotFoundError(f"{webhook_id[:_MAX_SHOWN]}: no such webhook.")
    return Webhook(**row)


def _anchor(connection: sa.Connection, query: sa.Select[Any], after: str) -> sa.RowMapping:
    row = connection.execute(query).mappings().first() if is_storable(after) else None
    if row is None:
        raise UnknownCursorError(f"after: {after[:_MAX_SHOWN]}: not in this list.")
    return row


def _asked(connection: sa.Connection, project: str, event: Event) -> Iterable[str]:
    """Locked, so that none is deleted before its delivery is there to be dropped with it."""
    query = sa.select(_hooks.id, _hooks.events).where(_hooks.project == project, _hooks.deleted_at.is_(None))
    rows = connection.execute(query.order_by(_hooks.id).with_for_update(read=True)).all()
    return [webhook_id for webhook_id, events in rows if event in events]


def _payload(event: Event, now: float, data: Mapping[str, Any]) -> str:
    """OpenAI's event; the same for every webhook, so that whoever has two can tell."""
    head = {"id": f"evt_{secrets.token_hex(12)}", "object": "event", "created_at": int(now), "type": event}
    return json.dumps({**head, "data": dict(data)})


def _new(webhook_id: str, now: float, event: Event, payload: str) -> Mapping[str, Any]:
    facts = {"id": f"whd_{secrets.token_hex(12)}", "webhook_id": webhook_id, "created_at": now, "next_at": now}
    return {**facts, "event": event, "payload": payload, "attempts": 0}


def _told() -> Sequence[sa.Column[Any]]:
    return [column for column in webhook_deliveries.columns if column.name != "payload"]


def _delivery(row: sa.RowMapping) -> Delivery:
    return Delivery(**{name: value for name, value in row.items() if name != "seq"})


def _due(now: float, most: int, busy: Collection[str]) -> sa.Select[Any]:
    oldest = sa.select(sa.func.min(_sent.seq)).where(_sent.next_at <= now, _sent.webhook_id.not_in(busy))
    chosen = sa.select(_sent.seq, _sent.id, _sent.webhook_id, _sent.payload, _sent.attempts, _sent.next_at)
    query = chosen.add_columns(_hooks.url, _hooks.secret).join(webhooks, _hooks.id == _sent.webhook_id)
    query = query.where(_hooks.deleted_at.is_(None), _sent.seq.in_(oldest.group_by(_sent.webhook_id)))
    return query.order_by(_sent.next_at, _sent.seq).limit(most)


def _claimed(connection: sa.Connection, row: sa.RowMapping, until: float, tries: int) -> bool:
    """By compare-and-set: of all who saw it due, one."""
    attempts = row["attempts"] + 1
    unchanged = sa.update(webhook_deliveries).where(_sent.seq == row["seq"], _sent.next_at == row["next_at"])
    claim = unchanged.values(attempts=attempts, next_at=until if attempts < tries else None)
    return connection.execute(claim).rowcount == 1


def _taken(row: sa.RowMapping) -> Taken:
    return Taken(row["id"], row["webhook_id"], row["url"], row["secret"], row["payload"], row["attempts"] + 1)
