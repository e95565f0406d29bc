"""Which files a spec's `data.feedback` means, each with the facts that identify its content."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.errors import DataError, SpecError

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet")


@dataclass(frozen=True)
class SourceFile:
    """One input file. `bytes` and `modified_ns` make a changed file a different input."""

    path: str
    bytes: int
    modified_ns: int

    def identity(self) -> dict[str, Any]:
        """What of it goes into a content address."""
        return {"path": self.path, "bytes": self.bytes, "modified_ns": self.modified_ns}


def expand(entries: list[str]) -> list[SourceFile]:
    """The files of paths, directories and globs, sorted and without doubles. Raises SpecError or DataError by entry."""
    found = {str(path): path for entry in entries for path in _matches(entry)}
    return [SourceFile(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(found.items())]


def _matches(entry: str) -> list[Path]:
    if "://" in entry and not entry.startswith("file://"):
        raise SpecError(f"data.feedback: {entry}: only local paths and globs can be read so far.")
    pattern = str(Path(entry.removeprefix("file://")).expanduser().absolute())
    paths = [Path(p) for p in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - the pattern is absolute
    files = [f for p in paths for f in (_logs_in(p) if p.is_dir() else [p])]
    if not files:
        raise DataError(f"data.feedback: {entry}: no such file (looked for {pattern}).")
    for file in files:
        if not file.name.endswith(_SUFFIXES):
            raise SpecError(f"data.feedback: {file}: unknown file type; readable are {', '.join(_SUFFIXES)}.")
    return files


def _logs_in(directory: Path) -> list[Path]:
    return [p for p in directory.iterdir() if p.name.endswith(_SUFFIXES)]
