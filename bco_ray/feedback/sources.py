"""Which files a spec's `data.feedback` means, each with the facts that identify its content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bco_ray.errors import DataError, SpecError
from bco_ray.storage import locations
from bco_ray.storage.locations import Found
from bco_ray.storage.log_names import KNOWN, extension_of, kind_of

_BESIDE = re.compile(
    r"[._].*|cache-.*\.arrow|(?:state|dataset_dict|dataset_infos?)\.json"
    r"|manifest(?:-\d+)?\.json|import-[0-9a-f]{16}\.json"
)
"""Names that lie beside data without being any: hidden files, what `datasets` keeps there, and our own manifests."""


@dataclass(frozen=True)
class SourceFile:
    """One input file, a local path or a URI. `bytes` and `modified_ns` make a changed file a different input."""

    path: str
    bytes: int
    modified_ns: int
    format: str = ""
    """The importer's name."""

    @property
    def kind(self) -> str:
        """`jsonl`, `json`, `csv`, `parquet` or `arrow`."""
        return kind_of(self.path)[0] or "jsonl"

    @property
    def compression(self) -> str:
        """`gz`, `zst` or nothing."""
        return kind_of(self.path)[1]

    def identity(self) -> dict[str, Any]:
        """What of it goes into a content address."""
        return {"path": self.path, "bytes": self.bytes, "modified_ns": self.modified_ns, "format": self.format}


def expand(entries: list[str]) -> list[SourceFile]:
    """The files of paths, directories, globs and URIs, sorted and without doubles.

    `hf://datasets/<organisation>/<name>` is every readable file of that data set, at its present commit. A directory
    is the files in it, and the splits below it where `datasets` saved a dictionary of them. Raises SpecError or
    DataError naming the entry.
    """
    found = {file.uri: file for entry in entries for file in _matches(entry)}
    return [SourceFile(uri, file.bytes, file.modified_ns) for uri, file in sorted(found.items())]


def _matches(entry: str) -> list[Found]:
    uri = locations.pinned(entry)
    if locations.is_repository(uri):
        files = _data_of(locations.list_directory(uri, recursive=True))
    else:
        found = locations.glob(uri)
        files = [file for thing in found for file in (_logs_in(thing.uri) if thing.is_directory else [thing])]
        if not found:
            raise DataError(f"data.feedback: {entry}: no such file.")
    if not files:
        raise DataError(f"data.feedback: {entry}: nothing readable in it; readable are {KNOWN}.")
    for file in files:
        if not extension_of(file.uri):
            raise SpecError(f"data.feedback: {file.uri}: unknown file type; readable are {KNOWN}.")
    return files


def _logs_in(directory: str) -> list[Found]:
    inside = locations.list_directory(directory)
    files = _data_of(inside)
    if any(found.name == "dataset_dict.json" for found in inside):
        splits = [found for found in inside if found.is_directory]
        files += [file for split in splits for file in _data_of(locations.list_directory(split.uri))]
    return files


def _data_of(inside: list[Found]) -> list[Found]:
    return [f for f in inside if not f.is_directory and extension_of(f.name) and not _BESIDE.fullmatch(f.name)]
