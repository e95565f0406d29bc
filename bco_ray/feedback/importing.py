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
from bco_ray.feedback.parsing import LabelMap, read_entries, resolve_label, to_row
from bco_ray.schema import PARSED
from bco_ray.storage.quarantine import Quarantine


@dataclass(frozen=True)
class ImportStage:
    """Reads LINES into PARSED. `formats`: importer's name by file; `label_map` None: common words and the format's.

    Refused entries go to `books`; people's names leave this stage only as pseudonyms made with `salt`.
    """

    books: Quarantine
    formats: Mapping[str, str]
    field_map: Mapping[str, str] | None
    label_map: LabelMap | None
    common_labels: LabelMap
    bits: int
    salt: bytes = field(repr=False)

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
                    refused.append(_refusal(row, outcome))
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
            try:
                yield entry if isinstance(entry, Refused) else self._parsed(entry, format_, row, number)
            except Refused as verdict:
                yield verdict

    def _parsed(self, entry: Entry, format_: Format, row: dict[str, Any], number: int) -> dict[str, Any]:
        fields = self._with_pseudonym(entry.fields)
        if entry.kind != "response":
            fields |= resolve_label(fields, self.labels_of(format_))
        default_id = identity.default_id(row["file"], row["position"], number)
        if entry.kind == "vote":
            return vote_row(to_row(fields, default_id=default_id), self.bits)
        return self._half(entry, fields, default_id)

    def _half(self, entry: Entry, fields: dict[str, Any], default_id: str) -> dict[str, Any]:
        name = fields.get("response_id")
        if not isinstance(name, str) or not name:
            raise Refused("missing_response_id", f"a {entry.kind} without the id of its answer cannot be joined")
        if entry.kind == "rating":
            fields.setdefault("id", default_id)
        try:
            half = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused("invalid_field", str(error)) from None
        bucket = identity.bucket_of_name(name, self.bits)
        return {"kind": entry.kind, "bucket": bucket, "response_id": name, "half": half}

    def _with_pseudonym(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        user = fields.get("user")
        if user is None or user == "":
            return {**fields, "user": None}
        if not isinstance(user, str | int):
            raise Refused("invalid_field", f"user: {type(user).__name__} is no name")
        return {**fields, "user": identity.hash_user(str(user), self.salt)}

    def format_of(self, file: str) -> Format:
        """The importer for a file."""
        return self._mapped or by_name(self.formats[file])

    @cached_property
    def _mapped(self) -> Format | None:
        return mapped(self.field_map) if self.field_map is not None else None

    def labels_of(self, format_: Format) -> LabelMap:
        """The spellings that count in a file of that format."""
        return self.label_map if self.label_map is not None else {**self.common_labels, **format_.label_map}


def _refusal(row: dict[str, Any], verdict: Refused) -> dict[str, Any]:
    place = {"file": row["file"], "position": row["position"]}
    return place | {"reason": verdict.reason, "detail": verdict.detail, "raw": row["raw"]}
