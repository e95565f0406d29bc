"""Going on from the newest whole checkpoint: chosen by one worker, verified by all, read into any engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bco_ray.errors import StorageError, TrainingError
from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore, DamagedError
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import logger
from bco_ray.training.background import Backoff, insist
from bco_ray.training.engine import Engine
from bco_ray.training.fragments import SavedState
from bco_ray.training.gang import Gang
from bco_ray.training.loop_state import LoopState

T = TypeVar("T")

_UNREADABLE = -(10**12)
"""Beyond any step, and beyond any sum of workers that found damage."""


class NewestCheckpoint:
    """The newest whole checkpoint of a run, for all workers of `gang`. `identity`: see `Checkpoints`."""

    def __init__(
        self,
        store: CheckpointStore,
        gang: Gang,
        identity: dict[str, Any],
        *,
        journal: RunJournal,
        backoff: Backoff,
        patience_seconds: float,
    ) -> None:
        self._store = store
        self._gang = gang
        self._identity = identity
        self._journal = journal
        self._backoff = backoff
        self._patience = patience_seconds

    def load(self, engine: Engine) -> LoopState | None:
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


def random_states() -> dict[str, Tensor]:
    """Of this worker's generators, by the name that a checkpoint gives them."""
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
