"""Forgetting: answers of some age lose everything that was said; that they were given, and the votes on them, stay.

An answer with a vote that no export has written yet keeps its text until one has: training has asked for it. What an
export has written stays in its segments (`bco erase` reaches those). Old bytes in the database are overwritten; its
write-ahead log forgets them with the next checkpoints.
"""

from __future__ import annotations

import sqlalchemy as sa

from bco_ray.storage.database import reading, writing
from bco_ray.storage.export import newest_manifest
from bco_ray.storage.feedback_log import FeedbackLog, completion_of, completion_row
from bco_ray.storage.tables import completions, votes

FEEDBACK = "feedback"
ANSWERS_PER_TRANSACTION = 200


def forget_older(log: FeedbackLog, before: float) -> int:
    """Empty the answers that were given before (unix seconds); how many. Reads the whole table once.

    Any number of processes may do this at once.
    """
    manifest = newest_manifest(log.storage / FEEDBACK)
    due = _due(before, manifest.watermark if manifest else 0)
    with reading(log.engine) as connection:
        ids = connection.execute(sa.select(completions.c.id).where(due)).scalars().all()
    steps = range(0, len(ids), ANSWERS_PER_TRANSACTION)
    return sum(_forget(log, sa.and_(due, completions.c.id.in_(ids[at : at + ANSWERS_PER_TRANSACTION]))) for at in steps)


def _due(before: float, watermark: int) -> sa.ColumnElement[bool]:
    waits = sa.exists().where(votes.c.response_id == completions.c.id, votes.c.seq > watermark)
    emptied = sa.func.json_extract(completions.c.sampling, "$.left_out").is_not(None)
    return sa.and_(completions.c.created_at < before, sa.not_(emptied), sa.not_(waits))


def _forget(log: FeedbackLog, due: sa.ColumnElement[bool]) -> int:
    with writing(log.engine) as connection:
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
        found = connection.execute(sa.select(completions).where(due)).mappings().all()
        for row in found:
            empty = completion_row(completion_of(row).emptied("expired"))
            connection.execute(sa.update(completions).where(completions.c.id == row["id"]).values(empty))
    return len(found)
