"""Checkpoints: `checkpoints/<step>/` with the engine's state of every worker, the loop's state, and a manifest last."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bco_ray.errors import StorageError, TrainingError
from bco_ray.objective import RewardShift
from bco_ray.storage import files
from bco_ray.telemetry import logger
from bco_ray.training.engine import Engine
from bco_ray.training.gang import Gang
from bco_ray.training.overlap import Background


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
    """The checkpoints of one run, in one directory that all workers share.

    `identity` says what they belong to (spec, shards, engine, world size); a checkpoint of anything else is refused.
    """

    def __init__(self, root: Path, identity: dict[str, Any], *, keep: int) -> None:
        self.root = root
        self.identity = identity
        self.keep = keep
        self._committing = Background()

    def save(self, engine: Engine, gang: Gang, state: LoopState) -> None:
        """Collective: returns when all workers have written; worker 0 then hashes and commits it beside the training.

        Older ones beyond `keep` are deleted after that. An error of a commit comes out of the next call, or of `wait`.
        """
        self.wait()
        final = self.root / f"{state.next_step:08d}"
        scratch = self.root / f".{final.name}.tmp"
        if gang.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        gang.barrier()
        engine.save(scratch)
        save_file({"torch": torch.get_rng_state()}, scratch / f"rng-{gang.rank}.safetensors")
        gang.barrier()
        if gang.rank == 0:
            self._committing.start(partial(self._commit, scratch, final, state))

    def wait(self) -> None:
        """Until the newest checkpoint counts."""
        self._committing.wait()

    def _commit(self, scratch: Path, final: Path, state: LoopState) -> None:
        files.commit_directory(scratch, {"identity": self.identity, "state": state.as_json()})
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        files.sync_directory(self.root)
        self._delete_old()

    def load_latest(self, engine: Engine, gang: Gang) -> LoopState | None:
        """Collective: the newest whole checkpoint goes into `engine`. None if there is none.

        Raises TrainingError if it belongs to another run or, for a sharded optimizer, to another world size.
        """
        found = self._newest_whole(gang)
        if found is None:
            return None
        directory, manifest = found
        self._check_identity(directory, manifest["identity"])
        engine.load(directory)
        rng = directory / f"rng-{gang.rank}.safetensors"
        if rng.is_file():
            torch.set_rng_state(load_file(rng)["torch"])
        return LoopState.from_json(manifest["state"])

    def steps(self) -> list[int]:
        """Steps with a commit mark, ascending."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(int(d.name) for d in found if d.name.isdigit() and files.is_committed(d))

    def _newest_whole(self, gang: Gang) -> tuple[Path, dict[str, Any]] | None:
        """Worker 0 checks the digests and its verdict is everybody's: a step is chosen by one, taken by all."""
        chosen = self._verified_step() if gang.rank == 0 else 0
        step = int(gang.sum(torch.tensor(chosen)))
        if step < 0:
            return None
        directory = self.root / f"{step:08d}"
        return directory, files.read_json(directory / files.MANIFEST)

    def _verified_step(self) -> int:
        for step in reversed(self.steps()):
            try:
                files.verify_directory(self.root / f"{step:08d}")
            except StorageError as error:
                logger.warning("checkpoint %d is damaged and passed over: %s", step, error)
            else:
                return step
        return -1

    def _check_identity(self, directory: Path, found: dict[str, Any]) -> None:
        for key, wanted in self.identity.items():
            if found.get(key) != wanted:
                raise TrainingError(
                    f"{directory}: made with {key} = {found.get(key)}, this run has {wanted}. "
                    "Continue with the old value, or start a new run under another name."
                )

    def _delete_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.root / f"{step:08d}", ignore_errors=True)
