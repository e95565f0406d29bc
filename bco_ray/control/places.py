"""Which places a job may use: an allow-list, so that nobody reads or changes the server's files by naming them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bco_ray.config.spec import KEPT, JobSpec
from bco_ray.errors import SpecError
from bco_ray.storage.files import path_of
from bco_ray.storage.objects import is_uri

Use = Literal["model", "log", "file", "write"]

_OWN_LOG = re.compile(r"feedback(:(\d+\.\.)?\d*)?")
_WILD = re.compile(r"[*?\[]")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(/\d+|@[A-Za-z0-9_-]+)?")

Check = Callable[[str, str, Use], None]
"""`check(field, place, use)` raises SpecError for a place that may not be used so."""


@dataclass(frozen=True)
class Places:
    """`allowed`: directories and URIs (`/models`, `s3://bucket/prefix`), with all that is below; every place as long as
    `unguarded` says so. Registered models, which `registered` knows, the directory that is `served`, and the server's
    own log are always allowed. `own`: where the server keeps its files; an allowed place above does not open them.
    """

    allowed: Sequence[str]
    registered: Callable[[str], bool]
    unguarded: Callable[[], bool] = lambda: False
    served: Path | None = None
    own: Sequence[str] = ()

    def check(self, field: str, place: str, use: Use) -> None:
        """Raises SpecError."""
        if self.unguarded() or self._ours(place, use) or self._below_allowed(place, use):
            return
        raise SpecError(f"{field}: {place}: not among the places this server lets jobs use; ask who runs it.", field)

    def _ours(self, place: str, use: Use) -> bool:
        if use == "model":
            match = _NAMED.fullmatch(place)
            return (match is not None and self.registered(match[1])) or self._is_served(place)
        return use == "log" and _OWN_LOG.fullmatch(place) is not None

    def _is_served(self, place: str) -> bool:
        whole = place.startswith("/") or is_uri(place)
        return self.served is not None and whole and path_of(place) == self.served.absolute()

    def _below_allowed(self, place: str, use: Use) -> bool:
        """`..` is nowhere needed, and after a wildcard nobody could say where it leads."""
        if ".." in re.split(r"[/\\]", place) or (use != "log" and _WILD.search(place)):
            return False
        return any(_below(place, root) and not self._reaches_own(place, root) for root in self.allowed)

    def _reaches_own(self, place: str, root: str) -> bool:
        """Below `own`, or above it (up to its first wildcard). Whoever allows a place within it means that."""
        fixed = _WILD.split(place)[0].rpartition("/")[0] if _WILD.search(place) else place
        theirs = [own for own in self.own if _below(own, root)]
        return any(_below(place, own) or _below(own, fixed) for own in theirs)


def _below(place: str, root: str) -> bool:
    if "://" in root or "://" in place:
        return place == root or place.startswith(root.rstrip("/") + "/")
    try:
        return Path(place).expanduser().resolve().is_relative_to(Path(root).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def check_places(spec: JobSpec, check: Check) -> None:
    """Every place a spec can name, whoever wrote it. Raises SpecError."""
    embedding = None if spec.scoring.embedding == "reference" else spec.scoring.embedding
    places: list[tuple[str, str | None, Use]] = [
        ("model.base", spec.model.base, "model"),
        ("model.reference", None if spec.model.reference == KEPT else spec.model.reference, "model"),
        ("scoring.embedding", embedding, "model"),
        ("scoring.classifier", spec.scoring.classifier, "file"),
        ("objective.shift.start", spec.objective.shift.start, "file"),
        ("training.checkpoint.storage", spec.training.checkpoint.storage, "write"),
    ]
    places += [(f"data.feedback.{number}", entry, "log") for number, entry in enumerate(spec.data.feedback)]
    for field, place, use in places:
        if place is not None:
            check(field, place, use)
