"""The stage that turns blocks of raw rows into votes (or halves of votes), each format by its own importer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.feedback import identity
from bco_ray.feedback.blocks import vote_row
from bco_ray.feedback.formats.entry import Entry, Format
from bco_ray.feedback.formats.registry import by_name, mapped
from bco_ray.feedback.parsing import (
    LabelMap,
    name_of,
    read_entries,
    refuse_half_characters,
    resolve_label,
    to_row,
)
from bco_ray.schema import PARSED
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.salt import hash_user

DEMONSTRATED = {"label": True, "label_raw": "demonstration"}
"""In the place of a vote, where a row is an example to learn from."""


@dataclass(frozen=True)
class ImportStage:
    """Reads LINES into PARSED. `formats`: importer's name by file; `label_map` None: common words and the format's.

    Refused entries go to `books`; people's names leave this stage only as pseudonyms made with `salt`. `score`: of a
    product's many kinds of scores the one to read. `erased`: pseudonyms and vote ids of which nothing may be kept.
    """

    books: Quarantine
    formats: Mapping[str, str]
    field_map: Mapping[str, str] | None
    label_map: LabelMap | None
    common_labels: LabelMap
    bits: int
    salt: bytes = field(repr=False)
    score: str | None = None
    erased: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, lines: pa.Table) -> Iterator[pa.Table]:
        """One block in (LINES), one out (PARSED)."""
        if not lines.num_rows:
            return
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        rows = lines.to_pylist()
        for row in rows:
            for number, outcome in enumerate(self._outcomes(row)):
                if isinstance(outcome, Refused):
                    refused.append(self._refusal(row, outcome))
                else:
                    kept.append({"file": row["file"], "position": row["position"], "entry": number} | outcome)
        responses = sum(1 for row in kept if row["kind"] == "response")
        first = (rows[0]["file"], rows[0]["position"])
        self.books.write(first, len(kept) + len(refused), refused, notes={"responses": responses})
        yield pa.Table.from_pylist(kept, schema=PARSED)

    def _outcomes(self, row: dict[str, Any]) -> Iterator[dict[str, Any] | Refused]:
        if row["problem"] is not None:
            reason, _, detail = row["problem"].partition(": ")
            yield Refused(reason, detail)
            return
        format_ = self.format_of(row["file"])
        for number, entry in enumerate(read_entries(row["raw"], format_)):
            if isinstance(entry, Refused):
                yield entry
                continue
            try:
                yield self._parsed(entry, format_, row, number)
            except Refused as verdict:
                verdict.user = name_or_nobody(entry)
                yield verdict

    def _parsed(self, entry: Entry, format_: Format, row: dict[str, Any], number: int) -> dict[str, Any]:
        self._refuse_other_scores(entry)
        fields = self._with_pseudonym(entry.fields)
        if entry.kind == "demonstration":
            fields |= DEMONSTRATED
        elif entry.kind != "response":
            fields |= resolve_label(fields, self.labels_of(format_))
        default_id = identity.default_id(row["file"], row["position"], number)
        if entry.kind in ("vote", "demonstration"):
            return vote_row(to_row(fields, default_id=default_id), self.bits)
        return self._half(entry, fields, default_id)

    def _half(self, entry: Entry, fields: dict[str, Any], default_id: str) -> dict[str, Any]:
        name = name_of(fields.get("response_id"), "response_id")
        if name is None:
            raise Refused("missing_response_id", f"a {entry.kind} without the id of its answer cannot be joined")
        fields["response_id"] = name
        if entry.kind == "rating":
            fields.setdefault("id", default_id)
        try:
            half = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused("invalid_field", str(error)) from None
        refuse_half_characters([half])
        bucket = identity.bucket_of_name(name, self.bits)
        return {"kind": entry.kind, "bucket": bucket, "response_id": name, "half": half}

    def _with_pseudonym(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        user = name_of(fields.get("user"), "user")
        refuse_half_characters([user])
        return {**fields, "user": None if user is None else hash_user(user, self.salt)}

    def _refuse_other_scores(self, entry: Entry) -> None:
        name = (entry.fields.get("metadata") or {}).get("score")
        if self.score is not None and name is not None and name != self.score:
            raise Refused("other_score", f"the score {name!r}; data.score is {self.score!r}")

    def _refusal(self, row: dict[str, Any], verdict: Refused) -> dict[str, Any]:
        """For quarantine: as it was read, but the voter (if known) as pseudonym, and nothing of who is erased."""
        raw, user = row["raw"], verdict.user
        pseudonym = None if user is None else hash_user(user, self.salt)
        if pseudonym in self.erased or any(name.encode() in raw for name in self.erased):
            raw, verdict = b"", Refused(verdict.reason, "erased on request")
        elif user and pseudonym:
            raw = raw.replace(json.dumps(user).encode(), json.dumps(pseudonym).encode())
            raw = raw.replace(json.dumps(user, ensure_ascii=False).encode(), json.dumps(pseudonym).encode())
        place = {"file": row["file"], "position": row["position"]}
        return place | {"reason": verdict.reason, "detail": verdict.detail, "raw": raw}

    def format_of(self, file: str) -> Format:
        """The importer for a file."""
        return self._mapped or by_name(self.formats[file])

    @cached_property
    def _mapped(self) -> Format | None:
        return mapped(self.field_map) if self.field_map is not None else None

    def labels_of(self, format_: Format) -> LabelMap:
        """The spellings that count in a file of that format."""
        return self.label_map if self.label_map is not None else {**self.common_labels, **format_.label_map}


def name_or_nobody(entry: Entry) -> str | None:
    """Who voted, as the export says; None if that is no name."""
    try:
        user = name_of(entry.fields.get("user"), "user")
        refuse_half_characters([user])
    except Refused:
        return None
    return user
