"""From log files to settled records: one Ray Data flow, in which no process holds more than a block or a bucket.

    files -> raw rows -> votes -> [halves joined on the response id] -> settled by prompt -> parts

Two hash shuffles of Ray Data at most (three with a cap per user), on disk, keyed by this package's own hashes: so a
part's content depends on the log alone, not on how many workers read it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from bco_ray.errors import StorageError
from bco_ray.feedback.importing import ImportStage
from bco_ray.feedback.joining import JoinStage
from bco_ray.feedback.lines import LineSource
from bco_ray.feedback.parts import PartStage
from bco_ray.feedback.settling import CapStage, SettleStage
from bco_ray.feedback.sizes import unpacked_bytes
from bco_ray.feedback.sources import SourceFile
from bco_ray.feedback.statistics import LogSums
from bco_ray.schema import RECORDS
from bco_ray.storage import files, locations, parquet
from bco_ray.storage.quarantine import Quarantine, Tally
from bco_ray.storage.records import PartFacts, RecordsManifest, commit_records, load_records

ROWS_PER_BLOCK = 4096
BUCKET_BYTES = 8 << 20
LEAST_BITS, MOST_BITS = 3, 16
ONE_BLOCK_BYTES = 64 << 20

Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class RecordsJob:
    """What to read and by which rules, and where the records go."""

    directory: Path
    inputs: dict[str, Any]
    sources: tuple[SourceFile, ...]
    importing: ImportStage
    settle: SettleStage
    joins: bool
    max_votes_per_user: int | None = None

    @property
    def bits(self) -> int:
        """2**bits buckets of about BUCKET_BYTES; a function of the files alone."""
        return bits_for(self.sources)

    def together(self, rows: ray.data.Dataset, key: str) -> ray.data.Dataset:
        """Rows with one key in one block: by a shuffle, or all in one where that would take longer than the work."""
        if unpacked_bytes(self.sources) <= ONE_BLOCK_BYTES:
            return rows.repartition(1)
        return rows.repartition(2**self.bits, keys=[key])

    def books(self, stage: str) -> Quarantine:
        """Where a stage accounts for its rows."""
        return Quarantine(self.directory / "quarantine" / stage)


def bits_for(sources: Sequence[SourceFile]) -> int:
    """How finely a log of this size is cut."""
    return min(MOST_BITS, max(LEAST_BITS, math.ceil(math.log2(max(1, unpacked_bytes(tuple(sources)) / BUCKET_BYTES)))))


def read_records(job: RecordsJob, progress: Progress) -> RecordsManifest:
    """Settle into `job.directory`, or return what is already there. Raises StorageError if the books do not balance."""
    with files.locked(job.directory / ".lock"):
        if files.is_committed(job.directory):
            return load_records(job.directory)
        files.clear_directory(job.directory)
        parts, written, sums = _run(job, progress)
        manifest = _manifest(job, parts, sums)
        commit_records(job.directory, manifest, written)
        return manifest


def _run(job: RecordsJob, progress: Progress) -> tuple[list[PartFacts], files.Facts, LogSums]:
    """Only facts and sums come back to the driver, one small row per bucket."""
    rows = ray.data.read_datasource(LineSource(list(job.sources))).repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
    votes = _map(rows, job.importing)
    if job.joins:
        votes = _map(job.together(votes, "bucket"), JoinStage(job.books("join"), job.bits, job.settle.rules.erased))
    votes = job.together(votes, "bucket")
    write = PartStage(job.directory, job.settle.file_order)
    if job.max_votes_per_user is None:
        written = _map(votes, _Then(job.settle, write))
    else:
        cap = CapStage(job.books("cap"), job.max_votes_per_user, job.settle.file_order)
        by_voter = job.together(_map(votes, job.settle), "voter")
        written = _map(job.together(_map(by_voter, cap), "bucket"), write)
    parts: list[PartFacts] = []
    known: dict[str, dict[str, Any]] = {}
    sums = LogSums()
    for row in written.iter_rows():
        parts += [PartFacts.model_validate_json(facts) for facts in row["parts"]]
        known |= json.loads(row["files"])
        sums = sums.merge(LogSums.from_state(json.loads(row["statistics"])))
        progress(sum(part.rows for part in parts), None, "votes settled")
    return sorted(parts, key=lambda part: part.file), known, sums


@dataclass(frozen=True)
class _Then:
    """Two stages as one: between two of its own, Ray would be free to cut a large bucket."""

    first: SettleStage
    second: PartStage

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for block in self.first(rows):
            yield from self.second(block)


def _map(rows: ray.data.Dataset, stage: Any) -> ray.data.Dataset:
    return rows.map_batches(stage, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)


def _manifest(job: RecordsJob, parts: list[PartFacts], sums: LogSums) -> RecordsManifest:
    tally, answers = balance(job, sum(part.rows for part in parts))
    return RecordsManifest(
        inputs=job.inputs,
        read=tally.read,
        kept=tally.kept,
        drops=tally.drops,
        answers=answers,
        bits=job.bits,
        statistics=sums.state_dict(),
        parts=parts,
    )


def balance(job: RecordsJob, written: int) -> tuple[Tally, dict[str, int]]:
    """(votes read and dropped, answers of a join), checked stage against stage. Raises StorageError if a row is lost.

    An answer without its vote is no vote: `read` counts votes, and rows that are neither.
    """
    parsed = job.books("import").tally()
    stages = [("import", parsed.without("responses"))]
    answers: dict[str, int] = {}
    if job.joins:
        joined = job.books("join").tally()
        answers = {**parsed.notes, **joined.notes}
        stages.append(("join", joined))
    stages.append(("settle", job.books("settle").tally()))
    if job.max_votes_per_user is not None:
        stages.append(("cap", job.books("cap").tally()))
    handed_on = [tally.kept for _, tally in stages]
    if handed_on != [*(tally.read for _, tally in stages[1:]), written]:
        counts = ", ".join(f"{name} read {t.read} and kept {t.kept}" for name, t in stages)
        raise StorageError(f"{job.directory}: rows do not add up: {counts}; {written} written. Run it again.")
    drops = Counter[str]()
    for _, tally in stages:
        drops.update(tally.drops)
    return Tally(stages[0][1].read, dict(sorted(drops.items()))), answers


@dataclass(frozen=True)
class CopyStage:
    """Writes one part as canonical log to `out`; what is ours alone (where a vote was read) stays here."""

    directory: Path
    out: str
    prefix: str

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`item` names the part and is returned."""
        rows = parquet.read_table(self.directory / item["file"]).select(RECORDS.names).cast(RECORDS)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        name = item["file"].removeprefix("part-")
        locations.write_bytes(f"{self.out}/{self.prefix}-{name}", sink.getvalue().to_pybytes())
        return item


def copy_records(directory: Path, out: str, progress: Progress) -> dict[str, Any]:
    """Settled records as a canonical log at `out`, a directory or URI; its manifest comes last and is returned.

    Files are named by the records' address: importing the same log again rewrites them, another log adds to them.
    """
    manifest, prefix = load_records(directory), f"votes-{directory.name}"
    items = [{"file": part.file} for part in manifest.parts if part.rows]
    done = 0
    if items:
        for _ in (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map(CopyStage(directory, out, prefix))
            .iter_rows()
        ):
            done += 1
            progress(done, len(items), "parts written")
    facts = {"read": manifest.read, "kept": manifest.kept, "drops": manifest.drops, "answers": manifest.answers,
             "files": [f"{prefix}-{item['file'].removeprefix('part-')}" for item in items]}  # fmt: skip
    locations.write_bytes(f"{out}/import-{directory.name}.json", json.dumps(facts, indent=2).encode())
    return facts
