"""A part of a log, taken the same way as a run takes the whole: read, settled, tokenized; without Ray.

Of each file the first bytes are read, and of their rows some stretches taken, so that neighbours stay together. Each
stands for a number of the log's rows. Copies, and a person's earlier votes, are found among the sample's own rows only,
so a log has somewhat more of them than a sample of it shows.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.feedback.joining import JoinStage
from bco_ray.feedback.lines import Range, as_table, rows_of
from bco_ray.feedback.raw import RawRow
from bco_ray.feedback.records import RecordsJob
from bco_ray.feedback.settling import CapStage
from bco_ray.feedback.sizes import unpacked_bytes
from bco_ray.feedback.sources import SourceFile
from bco_ray.pipeline.log import ResolvedLog
from bco_ray.schema import PARSED, SETTLED
from bco_ray.scoring.tokens import Tokenizing
from bco_ray.storage import locations
from bco_ray.storage.quarantine import Quarantine

MOST_ROWS = 2000
MOST_BYTES = 16 << 20
MOST_FILES = 200
"""Of more files only so many are looked into, evenly picked by size."""

STRETCH = 50
"""Rows next to each other that are taken together."""


@dataclass(frozen=True)
class Head:
    """The first rows of a file; `whole`: they are all it has. `taken`: those of them that are in the sample."""

    file: SourceFile
    rows: Sequence[RawRow]
    whole: bool
    taken: Sequence[RawRow]

    @property
    def stands_for(self) -> float:
        """How many rows of the file each of the taken ones is."""
        return self._rows_in_file / len(self.taken)

    @property
    def _rows_in_file(self) -> float:
        """Counted, or told by what a row takes of the file; Parquet says how many it has."""
        if self.whole:
            return len(self.rows)
        if self.file.kind == "parquet":
            with locations.open_input(self.file.path) as opened:
                return float(pq.ParquetFile(opened).metadata.num_rows)
        if self.file.kind == "jsonl" and not self.file.compression:
            last = self.rows[-1]
            return len(self.rows) * self.file.bytes / (last.position + len(last.raw) + 1)
        width = _cells_bytes if self.file.kind in ("csv", "arrow") else _line_bytes
        return unpacked_bytes((self.file,)) / fmean(width(row) for row in self.rows)


@dataclass(frozen=True)
class LogSample:
    """What was found. `votes`: how many the log has; `tokens`: the usable ones of the sample (scoring.tokens.KEYED),
    in a shard's order; `stands_for_N`: how many of the log's votes each of them is.

    `whole`: the sample is the log. `drops`: of the sample, by reason. `too_long`: the share of the votes read.
    `unjoined`: votes of the sample whose answers are further on in the log; nothing is said of them.
    """

    whole: bool
    votes: float
    tokens: pa.Table
    stands_for_N: np.ndarray
    drops: dict[str, int]
    too_long: float
    unjoined: int


def heads(sources: Iterable[SourceFile]) -> list[Head]:
    """Something of every file. Small files come first: what they leave of their share, the larger ones get."""
    by_size = sorted(sources, key=lambda file: (file.bytes, file.path))
    picked = by_size
    if len(by_size) > MOST_FILES:
        picked = [by_size[number * len(by_size) // MOST_FILES] for number in range(MOST_FILES)]
    rows, size = MOST_ROWS, MOST_BYTES
    found: list[Head] = []
    for left, file in zip(range(len(picked), 0, -1), picked, strict=True):
        head = _head(file, max(1, rows // left), size // left)
        rows -= len(head.taken)
        size -= sum(len(row.raw) for row in head.rows)
        found.append(head)
    return found


def sample_log(log: ResolvedLog, tokenizing: Tokenizing) -> LogSample:
    """Read, settle and tokenize a part of each of a log's files. Nothing of it stays on disk."""
    looked_at = heads(log.sources)
    whole = len(looked_at) == len(log.sources) and all(head.whole and head.taken == head.rows for head in looked_at)
    with tempfile.TemporaryDirectory(prefix="bco-estimate-") as scratch:
        job = replace(log, storage=Path(scratch)).job()
        parsed, read = _import(job, looked_at)
        known = parsed if whole or not job.joins else _joinable(parsed)
        settled = _settle(job, known)
        drops = _drops(job)
    tokens, refused = tokenizing(settled)
    drops.update(row["reason"] for row in refused)
    unlooked = sum(file.bytes for file in log.sources) / max(1, sum(head.file.bytes for head in looked_at))
    of_file = {head.file.path: head.stands_for * unlooked for head in looked_at if head.taken}
    votes = sum(read[path] * weight for path, weight in of_file.items())
    missing = Counter(parsed["file"].to_pylist()) - Counter(known["file"].to_pylist())
    judged = {path: weight * read[path] / max(1, read[path] - missing[path]) for path, weight in of_file.items()}
    too_long = sum(judged[row["file"]] for row in refused if row["reason"] == "too_long")
    return LogSample(
        whole=whole,
        votes=votes,
        tokens=tokens,
        stands_for_N=np.array([judged[path] for path in tokens["file"].to_pylist()], np.float64),
        drops=dict(drops.most_common()),
        too_long=too_long / votes if votes else 0.0,
        unjoined=missing.total(),
    )


def _head(file: SourceFile, most_rows: int, most_bytes: int) -> Head:
    rows: list[RawRow] = []
    size = 0
    with closing(rows_of(Range(file))) as reader:
        for row in reader:
            if rows and size + len(row.raw) > most_bytes:
                return Head(file, rows, whole=False, taken=_stretches(rows, most_rows))
            rows.append(row)
            size += len(row.raw)
    return Head(file, rows, whole=True, taken=_stretches(rows, most_rows))


def _stretches(rows: Sequence[RawRow], most: int) -> Sequence[RawRow]:
    """All, or evenly spread stretches of them."""
    if len(rows) <= most:
        return rows
    count = -(-most // STRETCH)
    starts = [number * len(rows) // count for number in range(count)]
    return [row for start in starts for row in rows[start : start + most // count]]


def _import(job: RecordsJob, looked_at: Sequence[Head]) -> tuple[pa.Table, dict[str, int]]:
    """(votes and halves of votes, how many votes were read by file): each file has books of its own."""
    blocks, read = [PARSED.empty_table()], {}
    for number, head in enumerate(looked_at):
        books = Quarantine(_books_of_imports(job) / str(number))
        blocks += replace(job.importing, books=books)(as_table(head.file.path, head.taken))
        read[head.file.path] = books.tally().without("responses").read
    return pa.concat_tables(blocks), read


def _settle(job: RecordsJob, votes: pa.Table) -> pa.Table:
    """As `feedback.records` does it, all buckets at once; in the order of parts."""
    if job.joins:
        joining = JoinStage(job.books("join"), job.bits, job.settle.rules.erased)
        votes = pa.concat_tables([PARSED.empty_table(), *joining(votes)])
    blocks = list(job.settle(votes))
    if job.max_votes_per_user is not None and blocks:
        cap = CapStage(job.books("cap"), job.max_votes_per_user, job.settle.file_order)
        blocks = list(cap(pa.concat_tables(blocks)))
    if not blocks:
        return SETTLED.empty_table()
    settled = pa.concat_tables(blocks)
    order = pa.array([job.settle.file_order[path] for path in settled["file"].to_pylist()], pa.int32())
    keys = [(name, "ascending") for name in ("prompt_hash", "_order", "position", "entry")]
    return settled.append_column("_order", order).sort_by(keys).select(SETTLED.names).cast(SETTLED)


def _joinable(parsed: pa.Table) -> pa.Table:
    """Without ratings whose answer is not in the sample: it may well be in the log."""
    answers = parsed.filter(pc.equal(parsed["kind"], "response"))["response_id"]
    alone = pc.and_(pc.equal(parsed["kind"], "rating"), pc.invert(pc.is_in(parsed["response_id"], answers)))
    return parsed.filter(pc.invert(alone))


def _drops(job: RecordsJob) -> Counter[str]:
    found = Counter[str]()
    stages = [job.books(name) for name in ("join", "settle", "cap")]
    for books in [*stages, *map(Quarantine, _books_of_imports(job).glob("*"))]:
        found.update(books.tally().drops)
    return found


def _books_of_imports(job: RecordsJob) -> Path:
    return job.books("import").directory


def _line_bytes(row: RawRow) -> int:
    return len(row.raw) + 1


def _cells_bytes(row: RawRow) -> int:
    """Of the values alone: names of columns are said once in a table."""
    if row.problem is not None:
        return _line_bytes(row)
    return sum(len(str(value).encode(errors="replace")) + 1 for value in json.loads(row.raw).values())
