"""Parsed rows: how a vote becomes one, how blocks of them fall into buckets, how one is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.feedback import identity

Row = dict[str, Any]

_WORKINGS = frozenset({"file", "position", "entry", "kind", "bucket", "half", "prompt_hash", "voter"})


def vote_row(row: Row, bits: int) -> Row:
    """A row of RECORDS as a row of PARSED, but for where it stood."""
    hashed = identity.prompt_hash(row["prompt"])
    return {"kind": "vote", "bucket": identity.bucket_of(hashed, bits), "prompt_hash": hashed, **row}


def by_bucket(rows: pa.Table) -> Iterator[tuple[int, list[Row]]]:
    """(bucket, its rows) for each bucket of a block, rows sorted by file name, position and entry."""
    if not rows.num_rows:
        return
    ordered = rows.sort_by([(name, "ascending") for name in ("bucket", "file", "position", "entry")])
    start = 0
    for bucket, group in groupby(ordered["bucket"].to_pylist()):
        count = sum(1 for _ in group)
        yield bucket, ordered.slice(start, count).to_pylist()
        start += count


def place_of(row: Row) -> Row:
    """Where a row was read."""
    return {name: row[name] for name in ("file", "position", "entry")}


def drop(row: Row, verdict: Refused) -> Row:
    """A parsed row as a row of quarantine; of a half, what it said."""
    said = {name: value for name, value in row.items() if name not in _WORKINGS and value is not None}
    raw = row.get("half") or json.dumps(said, ensure_ascii=False)
    place = {"file": row["file"], "position": row["position"]}
    return place | {"reason": verdict.reason, "detail": verdict.detail, "raw": raw.encode()}
