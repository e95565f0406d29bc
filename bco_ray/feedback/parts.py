"""The last stage: settled votes to Parquet parts, one small row of facts per bucket to the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.feedback.statistics import LogSums
from bco_ray.schema import SETTLED
from bco_ray.storage import files
from bco_ray.storage.records import PartFacts

ROWS_PER_PART = 8192
FACTS = pa.schema([("parts", pa.list_(pa.string())), ("files", pa.string()), ("statistics", pa.large_string())])
"""Of one bucket: PartFacts, what a manifest says of each part, LogSums; all as JSON."""


@dataclass(frozen=True)
class PartStage:
    """Writes each bucket as parts of at most ROWS_PER_PART rows, sorted by prompt, then by place in the log.

    Files are named by bucket, so a retried task overwrites its own.
    """

    directory: Path
    file_order: Mapping[str, int]

    def __call__(self, votes: pa.Table) -> Iterator[pa.Table]:
        """Whole buckets in (settling.PLACED), a row of FACTS for each out."""
        if not votes.num_rows:
            return
        buckets = votes["bucket"]
        for bucket in sorted(pc.unique(buckets).to_pylist()):
            rows = self._ordered(votes.filter(pc.equal(buckets, bucket)))
            written = [self._write(bucket, n, rows) for n in range(0, rows.num_rows, ROWS_PER_PART)]
            facts = {
                "parts": [part.model_dump_json() for part, _ in written],
                "files": json.dumps({part.file: facts for part, facts in written}),
            }
            sums = {"statistics": json.dumps(LogSums.of(rows).state_dict())}
            yield pa.Table.from_pylist([facts | sums], schema=FACTS)

    def _ordered(self, votes: pa.Table) -> pa.Table:
        order = pa.array([self.file_order.get(file, 0) for file in votes["file"].to_pylist()], pa.int32())
        keys = [(name, "ascending") for name in ("prompt_hash", "_order", "position", "entry")]
        return votes.append_column("_order", order).sort_by(keys).select(SETTLED.names).cast(SETTLED)

    def _write(self, bucket: int, start: int, votes: pa.Table) -> tuple[PartFacts, dict[str, Any]]:
        rows = votes.slice(start, ROWS_PER_PART).combine_chunks()
        name = f"part-{bucket:05d}-{start // ROWS_PER_PART:04d}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        files.write_bytes(self.directory / name, content)
        chosen = int(pc.sum(rows["label"]).as_py() or 0)
        part = PartFacts(file=name, bucket=bucket, chosen=chosen, rejected=rows.num_rows - chosen)
        return part, files.facts_of(content)
