"""Checkpoints as files: `<step>/` with a shard and a mark of every worker, and `manifest.json`, which makes it count.

    00000050/a003-rank-00001-of-00002.safetensors    one worker's share
    00000050/a003-rank-00001-of-00002.json           its mark: the share is there, with this digest
    00000050/manifest.json                           written last, when all marks are there

Workers need not talk: whoever commits finds the marks. Names carry the attempt, so that what an earlier attempt left at
the same step is never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bco_ray.errors import StorageError
from bco_ray.storage import files
from bco_ray.storage.stores import FileFact, Store, Write, put_bytes

_MANIFEST = re.compile(rf"(\d+)/{re.escape(files.MANIFEST)}")
_OF_ATTEMPT = re.compile(r"\d+/\.?a(\d+)-")
_DAMAGED = ".damaged"
_OF_STEP = re.compile(r"(\d+)/")


class DamagedError(StorageError):
    """A checkpoint is not what its manifest says; an earlier one may be."""


class _Sealed(BaseModel):
    """JSON that carries a digest of itself: a flipped bit anywhere is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        body = self.model_dump(mode="json")
        return (json.dumps({**body, "seal": _seal(body)}, indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Any:
        """Raises DamagedError naming the file."""
        try:
            body = json.loads(data)
            if not isinstance(body, dict) or body.pop("seal") != _seal(body):
                raise ValueError("its seal is broken")
            return cls.model_validate(body)
        except (ValueError, KeyError, ValidationError) as error:
            raise DamagedError(f"{name}: damaged ({error}).") from None


class Mark(_Sealed):
    """One worker's share is there."""

    file: str
    fact: FileFact


class CheckpointManifest(_Sealed):
    """A whole checkpoint. `layout` says how the shares were cut; `metrics` are means since the one before."""

    step: int
    attempt: int
    workers: int
    layout: str
    created_at: float
    identity: dict[str, Any]
    state: dict[str, Any]
    metrics: dict[str, float]
    shards: list[str]
    """By rank."""
    files: dict[str, FileFact]


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """Where one worker's share of one checkpoint goes."""

    step: int
    attempt: int
    rank: int
    workers: int

    @property
    def stem(self) -> str:
        """Of its two files."""
        return f"{self.step:08d}/a{self.attempt:03d}-rank-{self.rank:05d}-of-{self.workers:05d}"

    @property
    def shard(self) -> str:
        """The share."""
        return f"{self.stem}.safetensors"

    @property
    def mark(self) -> str:
        """That it is there."""
        return f"{self.stem}.json"


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last`, and the `best` ones by the mean of `metric`."""

    last: int = 2
    best: int = 0
    metric: str = "auc"

    def chosen(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Steps to keep. One without the metric is never among the best."""
        newest = sorted(metrics_by_step)[-max(1, self.last) :]
        sign = -1 if self.metric == "loss" else 1
        rated = [(sign * found[self.metric], step) for step, found in metrics_by_step.items() if self.metric in found]
        best = sorted(rated)[-self.best :] if self.best else []
        return {*newest, *(step for _, step in best)}


class CheckpointStore:
    """The checkpoints of one run. OSError of the store comes through: what it could not do may be tried again."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def steps(self) -> list[int]:
        """Steps with a commit mark, ascending."""
        found = (_MANIFEST.fullmatch(name) for name in self.store.sizes())
        return sorted(int(match[1]) for match in found if match)

    def newest_attempt(self) -> int:
        """That left anything here; 0 if none did."""
        return max((_attempt_of(name) or 0 for name in self.store.sizes()), default=0)

    def manifest(self, step: int) -> CheckpointManifest:
        """Raises DamagedError, or OSError if it cannot be read just now."""
        name = _manifest_name(step)
        manifest: CheckpointManifest = CheckpointManifest.from_bytes(self.store.get(name), name)
        if manifest.step != step:
            raise DamagedError(f"{name}: of step {manifest.step}.")
        return manifest

    def put_shard(self, place: Place, write: Write) -> None:
        """One worker's share, then its mark."""
        fact = self.store.put(place.shard, write)
        put_bytes(self.store, place.mark, Mark(file=place.shard, fact=fact).to_bytes())

    def marks(self, step: int, attempt: int, workers: int) -> list[Mark] | None:
        """Of all ranks, or None while one is not there."""
        places = [Place(step, attempt, rank, workers) for rank in range(workers)]
        there = self.store.sizes(f"{step:08d}")
        if any(place.mark not in there for place in places):
            return None
        return [Mark.from_bytes(self.store.get(place.mark), place.mark) for place in places]

    def commit(self, manifest: CheckpointManifest) -> None:
        """From here on it counts. What earlier attempts left at this step goes, if only with the whole of it later."""
        put_bytes(self.store, _manifest_name(manifest.step), manifest.to_bytes())
        with suppress(OSError):
            for name in self.store.sizes(f"{manifest.step:08d}"):
                attempt = _attempt_of(name)
                if attempt is not None and attempt < manifest.attempt:
                    self.store.delete(name)

    def sweep(self, step: int, attempt: int) -> None:
        """Delete what no attempt up to this one has committed below `step`: given up, died while it wrote, damaged."""
        names = self.store.sizes()
        kept = {_step_of(name) for name in names if name.partition("/")[2] == files.MANIFEST}
        for name in names:
            below = -1 < _step_of(name) < step
            if below and _step_of(name) not in kept and (_attempt_of(name) or 0) <= attempt:
                self.store.delete(name)

    @contextmanager
    def verified(self, manifest: CheckpointManifest, name: str) -> Iterator[Path]:
        """A shard as a local file. Raises DamagedError if it is not what the manifest says."""
        with ExitStack() as opened:
            try:
                path = opened.enter_context(self.store.local(name))
                fact = FileFact.of(path)
            except FileNotFoundError:
                raise DamagedError(f"{name}: missing, but {files.MANIFEST} names it.") from None
            if fact != manifest.files[name]:
                raise DamagedError(f"{name}: not what {files.MANIFEST} says.")
            yield path

    def set_aside(self, step: int) -> None:
        """Take the commit mark off a damaged one, so that it is neither loaded nor counted among those to keep."""
        name = _manifest_name(step)
        put_bytes(self.store, f"{name}{_DAMAGED}", self.store.get(name))
        self.store.delete(name)

    def discard(self, step: int) -> None:
        """Remove one that is of no use: its mark first, so that half of it is never taken for a whole."""
        self.store.delete(_manifest_name(step))
        for name in self.store.sizes(f"{step:08d}"):
            self.store.delete(name)

    def retain(self, keep: Keep) -> list[int]:
        """Discard all but those that `keep` chooses; returns the steps that went. A damaged one is left alone."""
        metrics = {}
        for step in self.steps():
            with suppress(DamagedError):
                metrics[step] = self.manifest(step).metrics
        gone = sorted(metrics.keys() - keep.chosen(metrics))
        for step in gone:
            self.discard(step)
        return gone


def _manifest_name(step: int) -> str:
    return f"{step:08d}/{files.MANIFEST}"


def _step_of(name: str) -> int:
    """-1: this is no file of a checkpoint."""
    found = _OF_STEP.match(name)
    return int(found[1]) if found else -1


def _attempt_of(name: str) -> int | None:
    """Of a worker's files, and of what it was still writing."""
    found = _OF_ATTEMPT.match(name)
    return int(found[1]) if found else None
