"""Checkpoints of a running training: a copy in memory at a step's end, written by a thread while training goes on.

Every worker writes its own share and a mark; worker 0's thread waits for all marks and commits. Storage that fails is
tried again; a checkpoint that is due meanwhile replaces the one that cannot be written. See `storage.checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore, Keep, Mark, Place
from bco_ray.storage.disk_errors import disk_errors
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import logger
from bco_ray.training.attempt import Attempt
from bco_ray.training.background import Abandoned, Backoff, Persistent
from bco_ray.training.engine import Engine
from bco_ray.training.fragments import host_copy
from bco_ray.training.gang import Gang
from bco_ray.training.loop_state import LoopState
from bco_ray.training.restoring import NewestCheckpoint, random_states

POLL_SECONDS = 0.1
GIVING_UP_SECONDS = 1.0
"""How long a step waits for a try that fails slowly, before it goes on without a checkpoint."""

PATIENCE_SECONDS = 300
"""How long the end of a training waits for its last checkpoint, and a start for storage that cannot be read."""


class Checkpoints:
    """The checkpoints of one attempt at a run.

    `identity` says what they belong to; a checkpoint of anything else is refused. How many workers there are, and how
    they share the state out, is no part of it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        gang: Gang,
        attempt: Attempt,
        identity: dict[str, Any],
        *,
        keep: Keep,
        journal: RunJournal,
        backoff: Backoff = Backoff(),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._gang = gang
        self._attempt = attempt
        self._identity = identity
        self._keep = keep
        self._journal = journal
        self._backoff = backoff
        self._patience = patience_seconds
        self._writing = Persistent(backoff, self._trouble)
        self._waiting = False
        """For the other workers' marks."""
        self._wanted = self._written = 0
        """Steps: of the checkpoint that was begun last (or had to be made), and of the last that is done here."""

    def save(
        self,
        engine: Engine,
        state: LoopState,
        metrics: dict[str, float],
        *,
        must: bool = False,
        alive: Callable[[], object] = lambda: None,
    ) -> bool:
        """Collective: copies the state and returns while it is being written; whether it is.

        While a worker is still busy with the one before, and it is not `must`, there is none this time: training does
        not wait. One whose writing fails is given up for this newer one. `alive` is called while it waits.
        """
        before = self._wanted
        may_begin = self._may_begin(self._patience if must else 0, alive)
        if may_begin or must:
            self._wanted = state.next_step
        if not may_begin:
            if self._gang.rank == 0:
                self._journal.write("checkpoint_skipped", step=state.next_step, being_written=before)
            return False
        tensors = host_copy(engine.fragments(), random_states())
        place = Place(state.next_step, self._attempt.number, self._gang.rank, self._gang.size)
        self._writing.start(partial(self._write, place, tensors, engine.layout, state, metrics))
        return True

    def _may_begin(self, patience_seconds: float, alive: Callable[[], object]) -> bool:
        """Collective: whether none is being written any more, or was given up because a worker cannot write it.

        All workers give up together, or one would wait for ever for the mark of another.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            self._writing.wait(0)  # raises what the last one died of
            state, over = self._writing.state, time.monotonic() >= deadline
            mine = [state == "failing", state == "working" and not self._waiting, state != "idle", over]
            failing, writing, unfinished, impatient = self._gang.sum(torch.tensor(mine).int()).tolist()
            if not unfinished or (failing and not writing and self._all_gave_up()):
                return True
            if impatient:
                return False
            alive()
            time.sleep(POLL_SECONDS)

    def _all_gave_up(self) -> bool:
        ended = self._writing.abandon(GIVING_UP_SECONDS)
        return int(self._gang.sum(torch.tensor(int(ended)))) == self._gang.size

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the checkpoint that was last asked for counts (of worker 0) or its share is written (of others).

        After at most so long; None: as long as one has patience. Raises what its writing died of.
        """
        ended = self._writing.wait(self._patience if seconds is None else seconds)
        return ended and self._written == self._wanted

    def tidy(self) -> None:
        """Delete what an attempt killed after its commit had no time to. Only once the newest was read or written."""
        if self._gang.rank == 0:
            self._attempt.require_newest()
            self._retain()

    def load_latest(self, engine: Engine) -> LoopState | None:
        """Collective: see `NewestCheckpoint.load`."""
        newest = NewestCheckpoint(
            self._store,
            self._gang,
            self._identity,
            journal=self._journal,
            backoff=self._backoff,
            patience_seconds=self._patience,
        )
        return newest.load(engine)

    def _write(
        self,
        place: Place,
        tensors: dict[str, Tensor],
        layout: str,
        state: LoopState,
        metrics: dict[str, float],
        abandoned: Abandoned,
    ) -> None:
        began = time.time()
        if place.rank == 0:
            self._attempt.require_newest()
            self._store.sweep(place.step, place.attempt)
        self._store.put_shard(place, partial(_save, tensors))
        marks = self._all_marks(place, abandoned) if place.rank == 0 else None
        if marks is None:
            self._written = self._written if place.rank == 0 else place.step
            return
        self._attempt.require_newest()
        self._store.commit(
            CheckpointManifest(
                step=place.step,
                attempt=place.attempt,
                workers=place.workers,
                layout=layout,
                created_at=began,
                identity=self._identity,
                state=state.as_json(),
                metrics=metrics,
                shards=[mark.file for mark in marks],
                files={mark.file: mark.fact for mark in marks},
            )
        )
        self._written = place.step
        gone = self._retain()
        self._journal.write("checkpoint", step=place.step, seconds=round(time.time() - began, 3), deleted=gone)

    def _all_marks(self, place: Place, abandoned: Abandoned) -> list[Mark] | None:
        self._waiting = True
        try:
            while (marks := self._store.marks(place.step, place.attempt, place.workers)) is None and not abandoned():
                time.sleep(POLL_SECONDS)
            return marks
        finally:
            self._waiting = False

    def _retain(self) -> list[int]:
        """Steps that went. The new one counts whether or not an old one can be deleted; the next one tries again."""
        try:
            return self._store.retain(self._keep)
        except OSError as error:
            logger.warning("old checkpoints cannot be deleted: %s", error)
            return []

    def _trouble(self, error: Exception, seconds: float) -> None:
        logger.warning("checkpoint %d: %s; training goes on, tried again in %.0f s", self._wanted, error, seconds)
        self._journal.write(
            "checkpoint_failed", step=self._wanted, rank=self._gang.rank, error=str(error), again_in_seconds=seconds
        )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with disk_errors():
        save_file(tensors, path)
