"""Attempts at one run are numbered, so that one that was given up for dead cannot write over the one that took over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bco_ray.errors import TrainingError
from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.training.gang import Gang

FILE = "attempt.json"


class StaleAttemptError(TrainingError):
    """A later attempt at the same run has begun; this one must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """One worker group's try at the run in directory `run`."""

    run: Path
    number: int

    @classmethod
    def begin(cls, run: Path, gang: Gang, store: CheckpointStore) -> Attempt:
        """The next one. Collective: worker 0 counts, for all."""
        number = 0
        if gang.rank == 0:
            number = (newest(run) or _newest_there(store)) + 1
            files.write_json(run / FILE, {"attempt": number})
        return cls(run, int(gang.sum(torch.tensor(number))))

    def require_newest(self) -> None:
        """Raises StaleAttemptError if a later one has begun."""
        latest = newest(self.run)
        if latest > self.number:
            raise StaleAttemptError(f"{self.run}: attempt {latest} has taken over from attempt {self.number}.")


def _newest_there(store: CheckpointStore) -> int:
    """Of a run whose directory was deleted, but not its checkpoints elsewhere. Storage that is down has no say."""
    with suppress(OSError):
        return store.newest_attempt()
    return 0


def newest(run: Path) -> int:
    """The last attempt's number; 0 before the first."""
    path = run / FILE
    return int(files.read_json(path)["attempt"]) if path.is_file() else 0
