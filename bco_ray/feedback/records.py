"""The stage that turns log files into a Ray Dataset of canonical records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from bco_ray.errors import Refused
from bco_ray.feedback.lines import LineSource
from bco_ray.feedback.parsing import parse_row
from bco_ray.feedback.sources import SourceFile
from bco_ray.schema import RECORDS, Record, record_to_row
from bco_ray.storage.quarantine import Quarantine

POSITIONED_RECORDS = RECORDS.insert(0, pa.field("file", pa.string())).insert(1, pa.field("position", pa.int64()))
"""A record and where it stood, so that every later stage can name a row and keep the log's order."""

ROWS_PER_BLOCK = 1024


@dataclass(frozen=True)
class ParseStage:
    """Parses blocks of raw lines; refused rows go to `quarantine`, rows whose id is in `superseded` too.

    `superseded`: ids that a later vote of the same person on the same answer replaced (from the log's manifest).
    """

    quarantine: Path
    label_map: Mapping[str, bool]
    superseded: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, lines: pa.Table) -> Iterator[pa.Table]:
        """One block in (schema.LINES), one out (POSITIONED_RECORDS), the refused ones written to quarantine."""
        if not lines.num_rows:
            return
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        rows = lines.to_pylist()
        for row in rows:
            where = {"file": row["file"], "position": row["position"]}
            try:
                kept.append(where | record_to_row(self._parse(row)))
            except Refused as verdict:
                refused.append(where | {"reason": verdict.reason, "detail": verdict.detail, "raw": row["raw"]})
        Quarantine(self.quarantine).write((rows[0]["file"], rows[0]["position"]), len(rows), refused)
        yield pa.Table.from_pylist(kept, schema=POSITIONED_RECORDS)

    def _parse(self, row: dict[str, Any]) -> Record:
        default_id = f"{Path(row['file']).name}:{row['position']}"
        record = parse_row(row["raw"], label_map=self.label_map, default_id=default_id)
        if record.id in self.superseded:
            raise Refused("superseded", "a later vote of the same user on the same answer replaced this one")
        return record


def read_records(files: list[SourceFile], stage: ParseStage) -> ray.data.Dataset:
    """A lazy, streaming dataset of POSITIONED_RECORDS in log order; nothing runs until it is consumed."""
    lines = ray.data.read_datasource(LineSource(files)).repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
    return lines.map_batches(stage, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
