"""The feedback log as immutable Parquet: segments of vote events, and manifests that say which of them count.

`manifest-<n>.json` is written last and never changed (but by an erasure); a training round pins one. Segments hold
every event up to its watermark, withdrawals too (label null): the last event of a user on an answer is the one that
counts, which whoever reads them decides. People are pseudonyms here. A segment that no manifest names is a leftover of
a killed export; the next export removes it. Votes on answers that nobody may train on are left out, and counted.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bco_ray.errors import StorageError
from bco_ray.schema import RECORDS, Record, record_to_row
from bco_ray.storage import erasures, files, parquet
from bco_ray.storage.database import reading
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.feedback_rows import ABORTED, left_out
from bco_ray.storage.salt import hash_user, user_salt
from bco_ray.storage.tables import NOT_ERASED, completions, votes

SEGMENT_ROWS = 20_000

_COPIED = ("id", "label", "source", "model", "comment", "tags", "correction", "tools")

_MANIFEST = re.compile(r"manifest-(\d+)\.json")
_LEFTOVER = re.compile(r"part-\d+-\d+\.parquet|\.(?:part|manifest)-.*\.tmp")


class Segment(BaseModel):
    """One Parquet file: the vote events with from_seq <= seq <= to_seq."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    rows: int
    from_seq: int
    to_seq: int
    sha256: str


class FeedbackManifest(BaseModel):
    """The log up to event `watermark`. `left_out`: how many events of it are in no segment, by reason: their answer is
    `not_stored` (the client asked for that), `expired`, or `aborted` (half an answer).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    created_at: float
    watermark: int
    segments: list[Segment]
    left_out: dict[str, int] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Events in its segments."""
        return sum(segment.rows for segment in self.segments)

    @property
    def file(self) -> str:
        """Its name in the feedback directory."""
        return f"manifest-{self.number}.json"


def export(log: FeedbackLog, feedback_dir: Path) -> FeedbackManifest | None:
    """Write what was voted since the newest manifest and a new manifest; the newest one itself if nothing was.

    None while there has never been a vote. Exporters exclude each other and each may be killed at any point. Raises
    StorageError if the directory's newest manifest knows events that the log does not.
    """
    with files.locked(feedback_dir / ".export.lock"), reading(log.engine) as connection:
        last = newest_manifest(feedback_dir)
        since, until = last.watermark if last else 0, _last_seq(connection)
        if until < since:
            raise StorageError(
                f"{feedback_dir}: exported up to vote {since}, but the log ends at {until}: not its log."
            )
        if until == since:
            return last
        _remove_leftovers(feedback_dir, last)
        return _extend(connection, feedback_dir, last, until)


def newest_manifest(feedback_dir: Path) -> FeedbackManifest | None:
    """None if there is none yet. Raises StorageError for a bad one."""
    numbers = _numbers(feedback_dir)
    return load_manifest(feedback_dir, numbers[-1]) if numbers else None


def load_manifest(feedback_dir: Path, number: int | None = None) -> FeedbackManifest:
    """Manifest `number`, or the newest. Raises StorageError if it or a segment it names is missing or damaged."""
    known = _numbers(feedback_dir)
    number = number if number is not None else next(reversed(known), None)
    if number not in known:
        there = f"There are: {', '.join(map(str, known))}." if known else "Nothing has been exported yet."
        raise StorageError(f"{feedback_dir}: no feedback manifest{'' if number is None else f' {number}'}. {there}")
    path = feedback_dir / f"manifest-{number}.json"
    try:
        manifest = FeedbackManifest.model_validate(files.read_json(path))
    except ValidationError as error:
        raise StorageError(f"{path}: not a feedback manifest: {error.errors()[0]['msg']}.") from None
    for segment in manifest.segments:
        if not (feedback_dir / segment.file).is_file():
            raise StorageError(f"{feedback_dir / segment.file}: missing, but {path.name} names it.")
    return manifest


def verify_segments(feedback_dir: Path, manifest: FeedbackManifest) -> None:
    """Read every segment and compare digests. Raises StorageError naming the first bad one."""
    for segment in manifest.segments:
        if files.sha256(feedback_dir / segment.file) != segment.sha256:
            raise StorageError(f"{feedback_dir / segment.file}: not what {manifest.file} says (sha256 differs).")


def erase_segments(feedback_dir: Path, matches: erasures.Matches) -> int:
    """Write every Parquet file again without the rows that match, and the manifests that name it; returns rows gone.

    A run that pinned a manifest finds it still there, with fewer rows.
    """
    if not feedback_dir.is_dir():
        return 0
    amendment = erasures.Amendment(feedback_dir)
    with files.locked(feedback_dir / ".export.lock"):
        files.remove_scraps(feedback_dir)
        gone = sum(erasures.drop_rows(path, matches, amendment) for path in sorted(feedback_dir.glob("*.parquet")))
        if amendment.pending:
            for number in _numbers(feedback_dir):
                _renew(feedback_dir, load_manifest(feedback_dir, number))
            amendment.finish()
    return gone


def _renew(directory: Path, manifest: FeedbackManifest) -> None:
    segments = [_as_it_is(directory, segment) for segment in manifest.segments]
    if segments != manifest.segments:
        renewed = manifest.model_copy(update={"segments": segments})
        files.write_json(directory / manifest.file, renewed.model_dump(mode="json"))


def _as_it_is(directory: Path, segment: Segment) -> Segment:
    path = directory / segment.file
    return segment.model_copy(update={"rows": parquet.read_metadata(path).num_rows, "sha256": files.sha256(path)})


def _extend(connection: sa.Connection, directory: Path, last: FeedbackManifest | None, until: int) -> FeedbackManifest:
    segments = list(last.segments) if last else []
    salt, dropped = user_salt(directory.parent), Counter(last.left_out if last else {})
    for first, final, found in _chunks(connection, last.watermark if last else 0, until):
        dropped.update(why for row in found if (why := _left_out(row)))
        rows = [record_to_row(_record(row, salt)) for row in found if not _left_out(row)]
        segments += [_write_segment(directory, first, final, rows)] if rows else []
    manifest = FeedbackManifest(
        number=last.number + 1 if last else 1,
        created_at=time.time(),
        watermark=until,
        segments=segments,
        left_out=dict(dropped),
    )
    files.write_json(directory / manifest.file, manifest.model_dump(mode="json"))
    return manifest


def _chunks(connection: sa.Connection, since: int, until: int) -> Iterator[tuple[int, int, Sequence[sa.RowMapping]]]:
    """(from_seq, to_seq, events) of each new segment; together they hold all of since < seq <= until."""
    while since < until:
        found = connection.execute(_events(since, until).limit(SEGMENT_ROWS)).mappings().all()
        if not found:
            return
        final = until if len(found) < SEGMENT_ROWS else int(found[-1]["seq"])
        yield since + 1, final, found
        since = final


def _write_segment(directory: Path, first: int, final: int, rows: list[dict[str, Any]]) -> Segment:
    path = directory / f"part-{first}-{final}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS), sink)
    files.write_bytes(path, sink.getvalue().to_pybytes())
    return Segment(file=path.name, rows=len(rows), from_seq=first, to_seq=final, sha256=files.sha256(path))


def _left_out(row: sa.RowMapping) -> str | None:
    half = row["choices"][row["choice_index"]]["finish_reason"] == ABORTED
    return left_out(row["sampling"]) or ("aborted" if half else None)


def _record(row: sa.RowMapping, salt: bytes) -> Record:
    choice = row["choices"][row["choice_index"]]
    facts = {name: row[name] for name in ("response_id", "choice_index", "endpoint")}
    facts |= {name: choice[name] for name in ("finish_reason", "ended")}
    return Record.model_validate(
        {
            **{name: row[name] for name in _COPIED},
            "prompt": row["messages"],
            "completion": [{"role": "assistant", "content": choice["text"]}],
            "label_raw": None if row["label"] is None else str(row["label"]).lower(),
            "response_id": choice_id(row["response_id"], row["choice_index"]),
            "user": hash_user(row["user"], salt) if row["user"] else None,
            "created_at": row["created_at"],
            "updated_at": row["created_at"],
            "metadata": {**row["metadata"], **facts},
        }
    )


def choice_id(response_id: str, choice_index: int) -> str:
    """The name of one of the answers that a response holds: of the first, the response's own."""
    return f"{response_id}:{choice_index}" if choice_index else response_id


def _events(since: int, until: int) -> sa.Select[Any]:
    answer = completions.c
    return (
        sa.select(votes, answer.model, answer.messages, answer.tools, answer.choices, answer.endpoint, answer.sampling)
        .join(completions, answer.id == votes.c.response_id)
        .where(votes.c.seq > since, votes.c.seq <= until, *NOT_ERASED)
        .order_by(votes.c.seq)
    )


def _last_seq(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(votes.c.seq), 0))).scalar_one())


def _numbers(directory: Path) -> list[int]:
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(match[1]) for path in found if (match := _MANIFEST.fullmatch(path.name)))


def _remove_leftovers(directory: Path, last: FeedbackManifest | None) -> None:
    named = {segment.file for segment in last.segments} if last else set()
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.name not in named:
            path.unlink()
