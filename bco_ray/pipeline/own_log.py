"""The server's own feedback log as a spec names it: all of it, up to a manifest, or what came since the last round.

feedback         every vote up to now
feedback:        those that the version to train from has not learned from, nor any that it descends from
feedback:7       every vote up to manifest 7
feedback:4..7    those that manifest 7 has beyond manifest 4
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bco_ray.errors import SpecError, StorageError
from bco_ray.storage.ancestry import ancestry
from bco_ray.storage.database import DATABASE
from bco_ray.storage.export import FeedbackManifest, export, load_manifest, newest_manifest, verify_segments
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.objects import ObjectPath

_ENTRY = re.compile(r"feedback(?::(?:(?:(?P<since>\d+)\.\.)?(?P<until>\d+))?)?")


@dataclass(frozen=True)
class OwnLog:
    """Manifest `until`, without what manifest `since` had."""

    directory: Path
    until: FeedbackManifest
    since: FeedbackManifest | None = None

    @property
    def entry(self) -> str:
        """That means the same tomorrow."""
        return f"feedback:{f'{self.since.number}..' if self.since else ''}{self.until.number}"

    @property
    def segments(self) -> list[str]:
        """Paths. A segment never holds votes of two manifests."""
        return [str(self.directory / segment.file) for segment in self.until.segments if segment.from_seq > self._seen]

    @property
    def older_segments(self) -> list[str]:
        """Paths of what manifest `since` had."""
        return [str(self.directory / segment.file) for segment in self.until.segments if segment.from_seq <= self._seen]

    @property
    def _seen(self) -> int:
        return self.since.watermark if self.since else 0


def is_own(entry: str) -> bool:
    """Whether an entry of `data.feedback` is meant for the server's log."""
    return entry == "feedback" or entry.startswith("feedback:")


def own_log(storage: Path, entry: str, base: str) -> OwnLog:
    """What the entry means now. `base`: the exact version (`bot/3`) that training starts from, if it is one. Raises
    SpecError.
    """
    match, directory = _ENTRY.fullmatch(entry), storage / "feedback"
    if match is None:
        raise SpecError(f"data.feedback: {entry}: write feedback, feedback: or feedback:<manifest number>.")
    since = match["since"] or (last_round(storage, base) if entry == "feedback:" else None)
    until = _manifest(directory, entry, match["until"]) if match["until"] else _newest(storage, directory)
    found = OwnLog(directory, until, _manifest(directory, entry, since) if since else None)
    if not found.segments:
        since_when = f" since manifest {since}, up to which {base} has learned" if since else ""
        raise SpecError(
            f"data.feedback: {entry}: no votes{since_when}. Vote, or train on feedback, which is all of it."
        )
    verify_segments(directory, until)
    return found


def last_round(storage: Path, base: str) -> int | None:
    """The newest manifest that `base`, or a model it descends from, has been trained on; None if none has.

    Other versions of the name do not count: what one that was never promoted learned, nobody is served by.
    """
    numbers = [
        number
        for _, lineage in ancestry(storage, base)
        for number in map(manifest_of, (lineage or {}).get("feedback") or ())
        if number
    ]
    return max(numbers, default=None)


def manifest_of(entry: str) -> int | None:
    """The manifest up to which a pinned entry goes; None for one that is not of the server's log."""
    match = _ENTRY.fullmatch(entry)
    return int(match["until"]) if match and match["until"] else None


def _manifest(directory: Path, entry: str, number: str | int) -> FeedbackManifest:
    try:
        return load_manifest(directory, int(number))
    except StorageError as error:
        raise SpecError(f"data.feedback: {entry}: {error}") from None


def _newest(storage: Path, directory: Path) -> FeedbackManifest:
    manifest = newest_manifest(directory)
    if not isinstance(storage, ObjectPath) and (storage / DATABASE).is_file():
        manifest = export(FeedbackLog.open(storage), directory)
    if manifest is None:
        raise SpecError(f"data.feedback: the server's log in {storage} has no votes yet (--storage names another).")
    return manifest
