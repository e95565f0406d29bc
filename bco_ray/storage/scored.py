"""Scored shards on disk: `scored/<hash>/part-*.parquet` (schema.SCORED) and the manifest that makes them count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bco_ray.storage import files


class ShardFacts(BaseModel):
    """One shard: rows per split and label, and tokens; enough to plan every training step without reading it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    train_chosen: int
    train_rejected: int
    validation_chosen: int
    validation_rejected: int
    train_tokens: int

    @property
    def rows(self) -> int:
        """All rows of the shard."""
        return self.train_chosen + self.train_rejected + self.validation_chosen + self.validation_rejected


class ScoredManifest(BaseModel):
    """What one scoring run made. `read = kept + sum(drops)`; `matching` is the density report."""

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, Any]
    read: int
    kept: int
    drops: dict[str, int]
    matching: dict[str, Any]
    shards: list[ShardFacts] = Field(default_factory=list)

    def count(self, field: str) -> int:
        """Sum of one of the shard counts."""
        return sum(int(getattr(shard, field)) for shard in self.shards)


def commit_scored(directory: Path, manifest: ScoredManifest) -> None:
    """Make the shards count: the manifest, with a digest of every shard, is written last."""
    files.commit_directory(directory, {"scored": manifest.model_dump()})


def load_scored(directory: Path) -> ScoredManifest:
    """The manifest of finished shards. Raises StorageError if scoring has not finished there."""
    return ScoredManifest.model_validate(files.read_json(directory / files.MANIFEST)["scored"])
