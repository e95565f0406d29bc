"""Settled records on disk: `records/<digest>/part-*.parquet` (schema.SETTLED) and the manifest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from bco_ray.errors import StorageError
from bco_ray.storage import erasures, files, parquet
from bco_ray.storage.quarantine import blank_mentions


class PartFacts(BaseModel):
    """One part: rows by label, and the bucket (of 2**bits, by prompt hash) that it and perhaps others hold."""

    model_config = ConfigDict(extra="forbid")

    file: str
    bucket: int
    chosen: int
    rejected: int

    @property
    def rows(self) -> int:
        """Both labels."""
        return self.chosen + self.rejected


class RecordsManifest(BaseModel):
    """What reading a log made. `read = kept + sum(drops)` over all votes.

    `answers` is the other side of a join: how many responses were read, voted on, and not usable. `statistics` is
    the state of the log's statistics (feedback.statistics), for reports.
    """

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, Any]
    read: int
    kept: int
    drops: dict[str, int]
    answers: dict[str, int] = Field(default_factory=dict)
    bits: int
    statistics: dict[str, Any] = Field(default_factory=dict)
    parts: list[PartFacts] = Field(default_factory=list)


def commit_records(directory: Path, manifest: RecordsManifest, known: files.Facts | None = None) -> None:
    """Make the parts count: the manifest, with a digest of every part, is written last. `known` ones are not read."""
    files.commit_directory(directory, {"records": manifest.model_dump()}, known)


def load_records(directory: Path) -> RecordsManifest:
    """The manifest of settled records. Raises StorageError if they are not finished."""
    found = files.read_json(directory / files.MANIFEST)
    if "records" not in found:
        raise StorageError(f"{directory}: its manifest is not one of settled records.")
    return RecordsManifest.model_validate(found["records"])


Statistics = Callable[[Iterable[pa.Table]], dict[str, Any]]
"""The statistics of a log, from its settled votes bucket by bucket."""


def erase_records(
    directory: Path, matches: erasures.Matches, mentions: erasures.Mentions, statistics: Statistics
) -> int:
    """Write the parts again without the rows that match, and blank refused rows; returns how many rows are gone.

    The books stay balanced: what is gone was dropped as `erased`. Nobody else may erase at the same time.
    """
    amendment = erasures.Amendment(directory)
    files.remove_scraps(directory)
    gone = sum(erasures.drop_rows(directory / p.file, matches, amendment) for p in load_records(directory).parts)
    blank_mentions(directory / "quarantine", mentions, amendment.begin)
    if amendment.pending:
        renewed = _recounted(directory, load_records(directory), statistics)
        erasures.renew_manifest(directory, {"records": renewed.model_dump()})
        amendment.finish()
    return gone


def _recounted(directory: Path, manifest: RecordsManifest, statistics: Statistics) -> RecordsManifest:
    """All numbers taken from the parts as they are, so that it does not matter how often this was begun before."""
    parts = [_part_as_it_is(directory, part) for part in manifest.parts]
    kept = sum(part.rows for part in parts)
    drops = {reason: count for reason, count in manifest.drops.items() if reason != "erased"}
    erased = manifest.read - kept - sum(drops.values())
    return manifest.model_copy(
        update={
            "parts": parts,
            "kept": kept,
            "drops": dict(sorted((drops | ({"erased": erased} if erased else {})).items())),
            "statistics": statistics(_buckets(directory, parts)),
        }
    )


def _part_as_it_is(directory: Path, part: PartFacts) -> PartFacts:
    labels = parquet.read_table(directory / part.file, columns=["label"])["label"]
    chosen = int(pc.sum(labels).as_py() or 0)
    return part.model_copy(update={"chosen": chosen, "rejected": len(labels) - chosen})


def _buckets(directory: Path, parts: list[PartFacts]) -> Iterator[pa.Table]:
    for _, group in groupby(sorted(parts, key=lambda part: (part.bucket, part.file)), key=lambda part: part.bucket):
        yield pa.concat_tables([parquet.read_table(directory / part.file) for part in group])
