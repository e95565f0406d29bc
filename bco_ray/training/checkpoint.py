"""Checkpoints: `checkpoints/<step>/` with the engine's state of every worker, the loop's state, and a manifest last."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands after `next_step` optimizer steps; the data cursor *is* `next_step` (see `plan`)."""

    next_step: int
    shift: RewardShift
    skipped_steps: int
    tokens_seen: int

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

    def save(self, engine: Engine, gang: Gang, state: LoopState) -> None:
        """Collective: returns when the checkpoint is committed. Older ones beyond `keep` are deleted after that."""
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
            files.commit_directory(scratch, {"identity": self.identity, "state": state.as_json()})
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
            files.sync_directory(self.root)
            self._delete_old()
        gang.barrier()

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
