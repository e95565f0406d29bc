"""Settled records without a log: the rows given, in parts as reading a log leaves them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bco_ray.schema import SETTLED, Record, record_to_row
from bco_ray.storage.records import PartFacts, RecordsManifest, commit_records
from bco_ray.text import canonical_prompt


def prompt_hash(record: Record) -> int:
    """As the import does it."""
    return int.from_bytes(hashlib.sha256(canonical_prompt(record.prompt).encode()).digest()[:8], signed=True)


def settled(records: Sequence[Record], file: str = "log") -> pa.Table:
    """Rows of SETTLED in the order given, each at the position of its index."""
    rows: list[dict[str, Any]] = [
        {"file": file, "position": n, "entry": 0, "prompt_hash": prompt_hash(record), **record_to_row(record)}
        for n, record in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=SETTLED)


def write_records(
    directory: Path, records: Sequence[Record], *, bits: int = 2, drops: dict[str, int] | None = None
) -> RecordsManifest:
    """A finished directory with one part for each of the 2**bits buckets that has rows, sorted by prompt."""
    directory.mkdir(parents=True, exist_ok=True)
    table = settled(records).sort_by([("prompt_hash", "ascending"), ("position", "ascending")])
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, hashed in enumerate(table["prompt_hash"].to_pylist()):
        rows_of[(hashed + 2**63) >> (64 - bits)].append(row)
    parts = [_write_part(directory, bucket, table.take(pa.array(rows))) for bucket, rows in sorted(rows_of.items())]
    drops = drops or {}
    read = len(records) + sum(drops.values())
    manifest = RecordsManifest(inputs={}, read=read, kept=len(records), drops=drops, bits=bits, parts=parts)
    commit_records(directory, manifest)
    return manifest


def _write_part(directory: Path, bucket: int, rows: pa.Table) -> PartFacts:
    name = f"part-{bucket:05d}-0000.parquet"
    pq.write_table(rows, directory / name)
    chosen = sum(rows["label"].to_pylist())
    return PartFacts(file=name, bucket=bucket, chosen=chosen, rejected=rows.num_rows - chosen)
