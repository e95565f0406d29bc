"""The stages that decide which votes count: the last one of a person on an answer, no copies, none that is neutral.

Every stage sees whole buckets: all votes on a prompt (or of a user) together, so each decision is made once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.feedback import identity
from bco_ray.feedback.blocks import Row, by_bucket, drop, place_of
from bco_ray.schema import SETTLED
from bco_ray.storage.quarantine import Quarantine

PLACED = SETTLED.insert(0, pa.field("bucket", pa.int32())).insert(1, pa.field("voter", pa.string()))
"""Settled votes on their way to a part. `voter`: the user, or the vote itself where nobody is named."""

Verdict = tuple[Row, Refused]


@dataclass(frozen=True)
class Rules:
    """`conflicts` majority: of different people's votes on one answer only those of the larger side count.

    `duplicates` keep: rows that name neither a user nor an answer nor themselves all count, even if they are equal.
    `erased`: pseudonyms and vote ids that must not be used again.
    """

    conflicts: Literal["keep", "majority"] = "keep"
    duplicates: Literal["drop", "keep"] = "drop"
    erased: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class SettleStage:
    """PARSED in, shuffled by prompt; out come the votes that count, as PLACED."""

    books: Quarantine
    rules: Rules
    file_order: Mapping[str, int]

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Any number of whole buckets in, one block per bucket out."""
        for bucket, votes in by_bucket(rows):
            kept, dropped = settle(votes, self.rules, self.file_order)
            self.books.write(("settle", bucket), len(votes), [drop(*verdict) for verdict in dropped])
            placed = [
                {**row, "voter": row["user"] or f"{row['file']}:{row['position']}:{row['entry']}"} for row in kept
            ]
            yield pa.Table.from_pylist(placed, schema=PLACED)


@dataclass(frozen=True)
class CapStage:
    """PLACED in, shuffled by user: the newest `most` votes of each user go on. Votes without a user all do."""

    books: Quarantine
    most: int
    file_order: Mapping[str, int]

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """All votes of a voter are in one block; the block's books are named by the first of them."""
        if not rows.num_rows:
            return
        kept: list[Row] = []
        dropped: list[Row] = []
        over = Refused("over_user_cap", f"only the newest {self.most} votes of a user count")
        votes = sorted(rows.to_pylist(), key=lambda row: (row["voter"], *age_key(row, self.file_order)))
        for _, group in groupby(votes, key=lambda row: row["voter"]):
            mine = list(group)
            dropped += [drop(row, over) for row in mine[: -self.most]]
            kept += mine[-self.most :]
        self.books.write((votes[0]["voter"], 0), len(votes), dropped)
        yield pa.Table.from_pylist(kept, schema=PLACED)


def settle(votes: Sequence[Row], rules: Rules, file_order: Mapping[str, int]) -> tuple[list[Row], list[Verdict]]:
    """(votes that count, the others with the reason) among all votes on some prompts."""
    last, dropped = _last_of_each(votes, rules, file_order)
    neutral = Refused("neutral", "the last vote of this user on this answer is neither up nor down")
    dropped += [(row, neutral) for row in last if row["label"] is None]
    kept = [row for row in last if row["label"] is not None]
    if rules.erased:  # after the last vote is known: to erase it does not bring back the one before
        dropped = [_blanked(row, verdict, rules.erased) for row, verdict in dropped]
        dropped += [_blanked(row, Refused("erased", ""), rules.erased) for row in kept if _named(row, rules.erased)]
        kept = [row for row in kept if not _named(row, rules.erased)]
    if rules.conflicts == "majority":
        kept, outvoted = _majority(kept)
        dropped += outvoted
    return kept, dropped


def age_key(row: Row, file_order: Mapping[str, int]) -> tuple[float, int, int, int]:
    """Sorts votes from the oldest to the newest: by time of change, then by place in the log."""
    changed = row["updated_at"] if row["updated_at"] is not None else row["created_at"]
    place = (file_order.get(row["file"], 0), row["position"], row["entry"])
    return (changed if changed is not None else float("-inf"), *place)


def _named(row: Row, erased: frozenset[str]) -> bool:
    return row["user"] in erased or row["id"] in erased


def _blanked(row: Row, verdict: Refused, erased: frozenset[str]) -> Verdict:
    """Of an erased row nothing is kept but its place."""
    if not _named(row, erased):
        return row, verdict
    return {**place_of(row), "id": row["id"]}, Refused("erased", "erased on request")


def _last_of_each(votes: Sequence[Row], rules: Rules, file_order: Mapping[str, int]) -> tuple[list[Row], list[Verdict]]:
    by_vote: dict[str, list[Row]] = {}
    for number, row in enumerate(votes):
        key = identity.vote_key(row)
        if rules.duplicates == "keep" and key.startswith("content:"):
            key += f":{number}"
        by_vote.setdefault(key, []).append(row)
    last: list[Row] = []
    replaced: list[Verdict] = []
    for group in by_vote.values():
        if scores := _several_scores(group):
            replaced += [(row, Refused("several_scores", f"{scores}: say which one, with data.score")) for row in group]
            continue
        *older, newest = sorted(group, key=lambda row: age_key(row, file_order))
        last.append(newest)
        replaced += [(row, _why_replaced(row, newest)) for row in older]
    return last, replaced


def _several_scores(group: list[Row]) -> str:
    """The names of a person's different scores of one answer: no two of them are one vote that changed."""
    if len(group) == 1 or not all('"score"' in row["metadata"] for row in group):
        return ""
    names = {str(json.loads(row["metadata"]).get("score")) for row in group}
    return ", ".join(sorted(names)) if len(names) > 1 else ""


def _why_replaced(row: Row, by: Row) -> Refused:
    there = f"{by['file']}:{by['position']}"
    if identity.content_key(row) == identity.content_key(by):
        return Refused("duplicate", f"the same vote is at {there}")
    return Refused("superseded", f"a later vote of the same user on the same answer is at {there}")


def _majority(votes: list[Row]) -> tuple[list[Row], list[Verdict]]:
    by_answer: dict[str, list[Row]] = {}
    for row in votes:
        by_answer.setdefault(identity.response_key(row), []).append(row)
    kept: list[Row] = []
    dropped: list[Verdict] = []
    for group in by_answer.values():
        ups = sum(row["label"] for row in group)
        downs = len(group) - ups
        if ups == downs:
            dropped += [(row, Refused("tied", f"{ups} votes up and {downs} down on this answer")) for row in group]
            continue
        for row in group:
            if row["label"] == (ups > downs):
                kept.append(row)
            else:
                dropped.append((row, Refused("outvoted", f"{ups} votes up and {downs} down on this answer")))
    return kept, dropped
