"""The stage that joins answers and ratings that were logged apart, on the answer's id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.feedback.blocks import by_bucket, drop, place_of, vote_row
from bco_ray.feedback.parsing import to_row
from bco_ray.schema import PARSED
from bco_ray.storage.quarantine import Quarantine

Row = dict[str, Any]


@dataclass(frozen=True)
class JoinStage:
    """PARSED in, shuffled so that both halves of a vote are in one block; PARSED out, complete votes only."""

    books: Quarantine
    bits: int
    erased: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Any number of whole buckets in."""
        for bucket, found in by_bucket(rows):
            yield pa.Table.from_pylist(self._join(bucket, found), schema=PARSED)

    def _join(self, bucket: int, rows: list[Row]) -> list[Row]:
        answers = {row["response_id"]: row for row in rows if row["kind"] == "response"}  # of copies the last
        voted: set[str] = set()
        joined = [row for row in rows if row["kind"] == "vote"]
        refused: list[Row] = []
        ratings = [row for row in rows if row["kind"] == "rating"]
        for rating in ratings:
            try:
                joined.append(place_of(rating) | self._vote(rating, answers.get(rating["response_id"])))
                voted.add(rating["response_id"])
            except Refused as verdict:
                known = {**rating, "half": None} if verdict.reason == "erased" or self._is_erased(rating) else rating
                refused.append(drop(known, verdict))
        notes = {"voted": len(voted), "unvoted": len(answers) - len(voted)}
        self.books.write(("join", bucket), len(joined) + len(refused), refused, notes=notes)
        return joined

    def _is_erased(self, rating: Row) -> bool:
        voted = json.loads(rating["half"]) if self.erased else {}
        return not self.erased.isdisjoint({voted.get("user"), voted.get("id")})

    def _vote(self, rating: Row, answer: Row | None) -> Row:
        if answer is None:
            raise Refused("no_response", f"no answer with the id {rating['response_id']!r} in these files")
        said, voted = json.loads(answer["half"]), json.loads(rating["half"])
        if self.erased and not self.erased.isdisjoint({voted["user"], said["user"], voted["id"]}):
            raise Refused("erased", "erased on request")
        metadata = {**(said.get("metadata") or {}), **(voted.get("metadata") or {})}
        fields = {**said, **{name: value for name, value in voted.items() if value is not None}}
        fields |= {"label": voted["label"], "label_raw": voted["label_raw"], "metadata": metadata}
        fields["user"] = voted["user"] or said["user"]  # who asked need not be who votes, but is the best guess
        return vote_row(to_row(fields, default_id=voted["id"]), self.bits)
