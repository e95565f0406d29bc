"""A checkpoint as files, without a training: for tests of who finds, copies and lists them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore, Place
from bco_ray.storage.stores import open_store


def write_checkpoint(place: str, step: int, *, identity: dict[str, Any], attempt: int = 1) -> CheckpointStore:
    """A committed one of a single worker, whose share is `b"weights" * step`."""
    store, share = CheckpointStore(open_store(place)), Place(step, attempt, rank=0, workers=1)
    store.put_shard(share, partial(_write, b"weights" * step))
    marks = store.marks(step, attempt, 1) or []
    store.commit(
        CheckpointManifest(
            step=step, attempt=attempt, workers=1, layout="even", created_at=1.0, identity=identity, state={},
            metrics={}, shards=[mark.file for mark in marks], files={mark.file: mark.fact for mark in marks},
        )
    )  # fmt: skip
    return store


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)
