"""Checkpoints of a running training: a copy in memory at a step's end, written by a thread while training goes on.

Every worker writes its own share and a mark; worker 0's thread waits for all marks and commits. Storage that fails is
tried again; a checkpoint that is due meanwhile replaces the one that cannot be written. See `storage.checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from bco_ray.errors import StorageError, TrainingError
from bco_ray.objective import RewardShift
from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore, DamagedError, Keep, Mark, Place
from bco_ray.storage.disk_errors import disk_errors
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import logger
from bco_ray.training.attempt import Attempt
from bco_ray.training.background import Abandoned, Backoff, Persistent, insist
from bco_ray.training.engine import Engine
from bco_ray.training.fragments import SavedState, host_copy
from bco_ray.training.gang import Gang

T = TypeVar("T")

POLL_SECONDS = 0.1
GIVING_UP_SECONDS = 1.0
"""How long a step waits for a try that fails slowly, before it goes on without a checkpoint."""

PATIENCE_SECONDS = 300
"""How long the end of a training waits for its last checkpoint, and a start for storage that cannot be read."""

_UNREADABLE = -(10**12)
"""Beyond any step, and beyond any sum of workers that found damage."""


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands after `next_step` optimizer steps; the data cursor *is* `next_step` (see `plan`)."""

    next_step: int
    shift: RewardShift
    skipped_steps: int
    tokens_seen: int

    @classmethod
    def first(cls, shift: RewardShift) -> LoopState:
        """Before the first step."""
        return cls(0, shift, skipped_steps=0, tokens_seen=0)

    def after(self, step: int, *, tokens: int, updated: bool) -> LoopState:
        """With one more step counted."""
        skipped = self.skipped_steps + (not updated)
        return replace(self, next_step=step + 1, skipped_steps=skipped, tokens_seen=self.tokens_seen + tokens)

    def with_shift(self, shift: RewardShift) -> LoopState:
        """With the shift brought up to `next_step`."""
        return replace(self, shift=shift)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "shift": self.shift.state_dict()}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> LoopState:
        """The inverse of `as_json`."""
        return cls(**{**state, "shift": RewardShift.from_state(state["shift"])})


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
        self._step = 0

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
        if not self._may_begin(self._patience if must else 0, alive):
            if self._gang.rank == 0:
                self._journal.write("checkpoint_skipped", step=state.next_step, being_written=self._step)
            return False
        tensors = host_copy(engine.fragments(), _random_states())
        self._step = state.next_step
        place = Place(state.next_step, self._attempt.number, self._gang.rank, self._gang.size)
        self._writing.start(partial(self._write, place, tensors, engine.layout, state, metrics))
        return True

    def _may_begin(self, patience_seconds: float, alive: Callable[[], object]) -> bool:
        """Collective: whether none is being written any more, or could be given up because a worker cannot write it.

        All workers give up together, or one would wait for ever for the mark of another.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            state, over = self._writing.state, time.monotonic() >= deadline
            mine = [state == "failing", state == "working" and not self._waiting, state == "working", over]
            failing, writing, unfinished, impatient = self._gang.sum(torch.tensor(mine).int()).tolist()
            if not writing and (failing or not unfinished):
                break
            if impatient:
                return False
            alive()
            time.sleep(POLL_SECONDS)
        ended = self._writing.abandon(GIVING_UP_SECONDS)
        return int(self._gang.sum(torch.tensor(int(ended)))) == self._gang.size

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the newest checkpoint counts after at most so long, None: as long as one has patience.

        Raises what its writing died of.
        """
        return self._writing.wait(self._patience if seconds is None else seconds)

    def load_latest(self, engine: Engine) -> LoopState | None:
        """Collective: the newest whole checkpoint goes into `engine`. None if there is none.

        One that is damaged is set aside with a warning. Raises TrainingError if it belongs to another run, StorageError
        if checkpoints cannot be read for longer than PATIENCE_SECONDS: an older one would throw steps away.
        """
        while (step := self._newest()) >= 0:
            with ExitStack() as opened:
                found = self._whole(step, engine, opened)
                if found is not None:
                    return self._restore(*found, engine)
        return None

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
        logger.warning("checkpoint %d: %s; training goes on, tried again in %.0f s", self._step, error, seconds)
        self._journal.write(
            "checkpoint_failed", step=self._step, rank=self._gang.rank, error=str(error), again_in_seconds=seconds
        )

    def _newest(self) -> int:
        """Worker 0 looks and its answer is everybody's; -1: there is none."""
        chosen = 0
        if self._gang.rank == 0:
            try:
                chosen = max(self._patiently(self._store.steps), default=-1)
            except (OSError, StorageError):
                chosen = _UNREADABLE
        step = int(self._gang.sum(torch.tensor(chosen)))
        if step == _UNREADABLE:
            raise StorageError("checkpoints cannot be listed; the workers' logs say why.")
        return step

    def _whole(self, step: int, engine: Engine, opened: ExitStack) -> tuple[CheckpointManifest, SavedState] | None:
        """The checkpoint, if every worker finds what it needs as it was written; else worker 0 sets it aside."""
        found, verdict = None, 0
        try:
            manifest: CheckpointManifest = self._patiently(partial(self._store.manifest, step))
            saved = opened.enter_context(
                SavedState(self._mine_first(manifest), partial(self._store.verified, manifest))
            )
            alike = engine.layout != "even" and (manifest.layout, manifest.workers) == (engine.layout, self._gang.size)
            self._patiently(partial(saved.open, 1 if alike else manifest.workers))
            found = manifest, saved
        except DamagedError as error:
            verdict = 1
            self._say_damaged(step, error)
        except (OSError, StorageError):
            verdict = -_UNREADABLE
        worst = int(self._gang.sum(torch.tensor(verdict)))
        if worst >= -_UNREADABLE:
            raise StorageError(f"checkpoint {step} cannot be read; the workers' logs say why.")
        if worst and self._gang.rank == 0:
            self._patiently(partial(self._store.set_aside, step))
        self._gang.barrier()
        return None if worst else found

    def _restore(self, manifest: CheckpointManifest, saved: SavedState, engine: Engine) -> LoopState:
        self._check_identity(manifest)
        state = LoopState.from_json(manifest.state)
        engine.restore(saved, state.next_step)
        engine.settle()
        _set_random_states(saved, manifest, self._gang)
        return state

    def _mine_first(self, manifest: CheckpointManifest) -> list[str]:
        rank = self._gang.rank % manifest.workers
        return manifest.shards[rank:] + manifest.shards[:rank]

    def _say_damaged(self, step: int, error: DamagedError) -> None:
        logger.warning("checkpoint %d is damaged and passed over: %s", step, error)
        self._journal.write("checkpoint_damaged", step=step, rank=self._gang.rank, error=str(error))

    def _patiently(self, read: Callable[[], T]) -> T:
        """What `read` returns; storage that cannot be read is tried again, damage is not."""
        return insist(read, self._backoff, seconds=self._patience, on_failure=self._cannot_read)

    def _cannot_read(self, error: Exception, seconds: float) -> None:
        logger.warning("checkpoints cannot be read: %s; tried again in %.0f s", error, seconds)
        self._journal.write("checkpoints_unreadable", rank=self._gang.rank, error=str(error), again_in_seconds=seconds)

    def _check_identity(self, manifest: CheckpointManifest) -> None:
        for key, wanted in self._identity.items():
            if (found := manifest.identity.get(key)) != wanted:
                raise TrainingError(
                    f"checkpoint {manifest.step}: made with {key} = {found}, this run has {wanted}. "
                    "Continue with the old value, or start a new run under another name."
                )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with disk_errors():
        save_file(tensors, path)


def _random_states() -> dict[str, Tensor]:
    states = {"rng-cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["rng-cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(saved: SavedState, manifest: CheckpointManifest, gang: Gang) -> None:
    """This worker's own; with another number of workers there are none of its own, and the seed's stay."""
    if manifest.workers != gang.size:
        return
    if (cpu := saved.extra("rng-cpu")) is not None:
        torch.set_rng_state(cpu)
    if torch.cuda.is_available() and (cuda := saved.extra("rng-cuda")) is not None:
        torch.cuda.set_rng_state(cuda)
