"""The model registry on disk: `models/<name>/<version>/` (a model or an adapter) and `models/<name>/aliases.json`.

Versions are integers, written once and never changed; an alias (`prod`, `candidate`) points at one and is moved by
compare-and-set. A reference is `name/3`, `name@prod`, or `name` (the alias `prod` if set, else the newest version).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.errors import ConflictError, ModelError
from bco_ray.storage import files

_REFERENCE = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:/(?P<version>\d+)|@(?P<alias>[A-Za-z0-9_-]+))?$")

_ALIAS = re.compile(r"^[A-Za-z0-9_-]+$")


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version."""

    name: str
    version: int
    directory: Path
    lineage: dict[str, Any]

    @property
    def reference(self) -> str:
        """`name/3`, the exact name that every reply carries."""
        return f"{self.name}/{self.version}"


class Registry:
    """Reads and writes `<storage>/models`."""

    def __init__(self, storage: Path) -> None:
        self.root = storage / "models"

    def names(self) -> list[str]:
        """Names with at least one version, sorted."""
        return sorted(d.name for d in self.root.iterdir() if self.versions(d.name)) if self.root.is_dir() else []

    def versions(self, name: str) -> list[int]:
        """Finished versions of `name`, ascending."""
        directory = self.root / name
        found = directory.iterdir() if directory.is_dir() else ()
        return sorted(int(d.name) for d in found if d.name.isdigit() and (d / "lineage.json").is_file())

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version."""
        path = self.root / name / "aliases.json"
        return dict(files.read_json(path)) if path.is_file() else {}

    def register(self, name: str, source: Path, lineage: dict[str, Any]) -> ModelVersion:
        """Copy the model in `source` as the next version; registering the same run twice returns the first.

        `lineage["run"]` identifies the run: a resumed pipeline that had already registered finds its version again.
        """
        with self._writing(name):
            for version in self.versions(name):
                known = self.get(name, version)
                if lineage.get("run") is not None and known.lineage.get("run") == lineage["run"]:
                    return known
            number = max(self.versions(name), default=0) + 1
            with files.new_directory(self.root / name / str(number)) as scratch:
                shutil.copytree(source, scratch, dirs_exist_ok=True)
                stamped = {**lineage, "name": name, "version": number, "registered_at": int(time.time())}
                files.write_json(scratch / "lineage.json", stamped)
        return self.get(name, number)

    def get(self, name: str, version: int) -> ModelVersion:
        """Raises ModelError naming the versions there are."""
        directory = self.root / name / str(version)
        if not (directory / "lineage.json").is_file():
            raise ModelError(f"{name}/{version}: no such model version in {self.root}. {self._known(name)}")
        return ModelVersion(name, version, directory, files.read_json(directory / "lineage.json"))

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `name/3`, `name@alias` or `name` means now. Raises ModelError."""
        match = _REFERENCE.match(reference)
        if match is None:
            raise ModelError(f"{reference}: not a model reference; write name/3, name@prod or name.")
        name, version, alias = match["name"], match["version"], match["alias"]
        if version is not None:
            return self.get(name, int(version))
        aliases, versions = self.aliases(name), self.versions(name)
        if not versions:
            raise ModelError(f"{reference}: no such model in {self.root}. {self._known(name)}")
        if alias is not None and alias not in aliases:
            raise ModelError(f"{reference}: {name} has no alias {alias}. {self._known(name)}")
        return self.get(name, aliases[alias] if alias else aliases.get("prod", versions[-1]))

    def move_alias(self, name: str, alias: str, version: int, *, expected: int | None) -> None:
        """Point `alias` at `version` if it points at `expected` now (None: unset). Raises ConflictError, ModelError.

        The history is written ahead; without the second write the move did not happen.
        """
        self.get(name, version)
        if not _ALIAS.match(alias):
            raise ModelError(f"{alias!r}: an alias is letters, digits, - and _.")
        with self._writing(name):
            aliases = self.aliases(name)
            if aliases.get(alias) != expected:
                raise ConflictError(f"{name}@{alias} is {aliases.get(alias)}, not {expected}: somebody moved it first.")
            if version == expected:
                return
            history = [
                *self.history(name),
                {"alias": alias, "version": version, "was": expected, "at": int(time.time())},
            ]
            files.write_json(self.root / name / "history.json", history)
            files.write_json(self.root / name / "aliases.json", {**aliases, alias: version})

    def history(self, name: str) -> list[dict[str, Any]]:
        """Every alias move, oldest first; not one whose mover died before the alias moved."""
        path, aliases = self.root / name / "history.json", self.aliases(name)
        moves: list[dict[str, Any]] = files.read_json(path) if path.is_file() else []
        happened = not moves or aliases.get(moves[-1]["alias"]) == moves[-1]["version"]
        return moves if happened else moves[:-1]

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """The one writer of `name`; what killed ones left is gone."""
        with files.locked(self.root / name / ".lock"):
            files.remove_leftovers(self.root / name)
            yield

    def _known(self, name: str) -> str:
        if versions := self.versions(name):
            return f"Versions: {', '.join(map(str, versions))}; aliases: {self.aliases(name) or 'none'}."
        return f"Registered models: {', '.join(self.names()) or 'none'}. Is it the right storage directory?"
