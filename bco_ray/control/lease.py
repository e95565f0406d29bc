"""Whose turn it is: of several clusters that share a database, one looks after the jobs.

Each asks its own Ray about a job, and takes one that its Ray does not know for lost. So another cluster looks only once
the one that did has said nothing for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from bco_ray.storage.database import reading, writing
from bco_ray.storage.job_tables import leases

SECONDS = 20.0
"""After so long in silence another may take over. Clocks of the clusters may differ by less than that."""


class Lease:
    """A turn by its name. `holder`: who asks for it, the same after a restart within the same cluster."""

    def __init__(self, engine: sa.Engine, name: str, holder: str, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._name = name
        self._holder = holder
        self._clock = clock

    def held(self) -> bool:
        """Whether it is this one's turn, from now on for SECONDS / 2 at least. Raises StorageError."""
        now = self._clock()
        mine = leases.c.name == self._name
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(leases).where(mine)).mappings().first()
        if row is not None and row["until"] > now and row["holder"] != self._holder:
            return False
        if row is not None and row["holder"] == self._holder and row["until"] > now + SECONDS / 2:
            return True
        return self._take(now)

    def _take(self, now: float) -> bool:
        fresh = {"holder": self._holder, "until": now + SECONDS}
        free = sa.or_(leases.c.holder == self._holder, leases.c.until <= now)
        with writing(self._engine) as connection:
            taken = sa.update(leases).where(leases.c.name == self._name, free).values(**fresh)
            if connection.execute(taken).rowcount:
                return True
            if connection.execute(sa.select(leases).where(leases.c.name == self._name)).first():
                return False  # another was faster
            connection.execute(sa.insert(leases).values(name=self._name, **fresh))
        return True
