"""Which places a job may read and write: an allow-list, so that nobody reads the server's files by naming them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bco_ray.errors import SpecError
from bco_ray.storage.registry import NAME

_REGISTERED = re.compile(rf"{NAME}(/\d+|@[A-Za-z0-9_-]+)?")
_MODELS = frozenset({"model.base", "model.reference", "scoring.embedding"})
_OWN_LOG = re.compile(r"feedback(:(\d+\.\.)?\d*)?")


@dataclass(frozen=True)
class Places:
    """`allowed`: directories and URIs (`/models`, `s3://bucket/prefix`), with all that is below; every place as long as
    `unguarded` says so. Registered models and the server's own log are always allowed.
    """

    allowed: Sequence[str]
    unguarded: Callable[[], bool] = lambda: False

    def check(self, field: str, place: str) -> None:
        """Raises SpecError."""
        ours = _REGISTERED if field in _MODELS else _OWN_LOG
        if self.unguarded() or ours.fullmatch(place):
            return
        if any(_below(place, root) for root in self.allowed):
            return
        raise SpecError(f"{field}: {place}: not among the places this server lets jobs use; ask who runs it.")


def _below(place: str, root: str) -> bool:
    if "://" in root or "://" in place:
        inside = place == root or place.startswith(root.rstrip("/") + "/")
        return inside and ".." not in place.split("/")
    try:
        return Path(place).expanduser().resolve().is_relative_to(Path(root).resolve())
    except (OSError, ValueError, RuntimeError):
        return False
