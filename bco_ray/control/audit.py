"""The audit log: who did what to whom. Entries are only ever appended, in the transaction of the deed itself.

What is done outside of the database (a model's name is moved) is written down right after it was done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bco_ray.storage.database import reading, writing
from bco_ray.storage.job_tables import audit_log


@dataclass(frozen=True)
class AuditEntry:
    """`at`: unix seconds. `actor`: a key's id, or who else it was. `facts`: more about the action, never a secret."""

    seq: int
    at: float
    project: str
    actor: str
    action: str
    target: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Deed:
    """Something done to a job: `actor` as in `AuditEntry`, `action` as in `job.cancel`."""

    actor: str
    action: str


def record(connection: sa.Connection, *, project: str, actor: str, action: str, target: str, **facts: Any) -> None:
    """Append an entry to the caller's transaction: it counts if, and only if, what it tells of does."""
    entry = {"at": time.time(), "project": project, "actor": actor, "action": action, "target": target, "facts": facts}
    connection.execute(sa.insert(audit_log).values(entry))


class AuditLog:
    """Reads what was recorded, and records what no transaction of its own tells of."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def record(self, *, project: str, actor: str, action: str, target: str, **facts: Any) -> None:
        """In a transaction of its own. Raises StorageError."""
        with writing(self._engine) as connection:
            record(connection, project=project, actor=actor, action=action, target=target, **facts)

    def list(
        self,
        project: str | None = None,
        *,
        after: int | None = None,
        limit: int = 100,
        action: str | None = None,
        actor: str | None = None,
    ) -> tuple[Sequence[AuditEntry], bool]:
        """Up to `limit` entries, the newest first, those before the one with seq `after`; and whether there are more.

        On PostgreSQL the order is that of appending, not of commits: one that commits late may show up further down.
        """
        query = sa.select(audit_log).order_by(audit_log.c.seq.desc()).limit(limit + 1)
        for column, value in (("project", project), ("action", action), ("actor", actor)):
            if value is not None:
                query = query.where(audit_log.c[column] == value)
        if after is not None:
            query = query.where(audit_log.c.seq < after)
        with reading(self._engine) as connection:
            found = [AuditEntry(**row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit
