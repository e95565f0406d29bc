"""The model registry on disk: `models/<name>/<version>/` (a model or an adapter) and what names mean beside them.

Versions are integers, written once and never changed; `lineage.json` has a digest of every file. An alias (`prod`,
`candidate`) points at one and is moved by compare-and-set. A reference is `name/3`, `name@prod`, or `name` (the alias
`prod` if set, else the newest version whose gate is not shut). `prod` points at no version that does not pass its gate,
and at none without a gate after one that has one.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

from bco_ray.errors import ConflictError, GateError, ModelError
from bco_ray.storage import aliases as book
from bco_ray.storage import files
from bco_ray.storage.aliases import CANDIDATE, PROD, Aliases
from bco_ray.storage.evaluations import Evaluations
from bco_ray.storage.gates import Gates
from bco_ray.storage.local_copies import local_copy

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ALIAS = r"[A-Za-z0-9_-]+"
EVERYBODYS = "default"
"""The project of those who ask without a key: any other may add versions to a name that it has registered."""

_REFERENCE = re.compile(rf"(?P<name>{NAME})(?:/(?P<version>\d+)|@(?P<alias>{ALIAS}))?")
LINEAGE = "lineage.json"
_MOVE_SECONDS = 5.0
"""How long a move of an alias waits for its turn."""
_BUSY = "busy: somebody else is writing there, perhaps a new version; try again."


class UnknownVersionError(ModelError):
    """Nothing is registered under this name, version or alias."""


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
        return sorted(int(d.name) for d in found if d.name.isdigit() and files.is_there(d) and (d / LINEAGE).is_file())

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version."""
        return self.state(name).aliases

    def history(self, name: str) -> list[dict[str, Any]]:
        """Every change of aliases and canary, oldest first; not one whose author died before it was made."""
        return list(self.state(name).history)

    def state(self, name: str) -> Aliases:
        """What the names mean at one moment, for servers that follow them: three small files, no lock."""
        return book.read(self.root / name)

    def register(self, name: str, source: Path, lineage: dict[str, Any]) -> ModelVersion:
        """Copy the model in `source` as the next version; registering the same run twice returns the first.

        `lineage["run"]` identifies the run: a resumed pipeline that had already registered finds its version again.
        Raises ModelError if `lineage["project"]` is not the one that the name is of.
        """
        if known := self._of_run(name, lineage.get("run")):
            return known
        source = local_copy(source)
        digests = _digests(source)
        with self._writing(name):
            if known := self._of_run(name, lineage.get("run")):
                return known
            _require_owner(name, self.owner(name), lineage.get("project"))
            number = max(self.versions(name), default=0) + 1
            with files.new_directory(self.root / name / str(number)) as scratch:
                shutil.copytree(source, scratch, dirs_exist_ok=True)
                own = {"name": name, "version": number, "registered_at": int(time.time()), "files": digests}
                files.write_json(scratch / LINEAGE, {**lineage, **own})
        return self.get(name, number)

    def verify(self, name: str, version: int, at: Path | None = None) -> bool:
        """Whether the files (or those of a copy `at`) could be checked: a version registered before digests were kept
        has none (False).

        Raises ModelError naming the first file that is missing, was added, or is not what was registered.
        """
        known = self.get(name, version)
        if (registered := known.lineage.get("files")) is None:
            return False
        found = _digests(at or known.directory)
        for file in sorted(registered.keys() | found.keys()):
            if registered.get(file) != found.get(file):
                problem = "missing" if file not in found else "changed" if file in registered else "was added"
                raise ModelError(
                    f"{known.directory / file}: {problem} since {known.reference} was registered. "
                    "Put the file back as it was, or register the model anew."
                )
        return True

    def get(self, name: str, version: int) -> ModelVersion:
        """Raises ModelError naming the versions there are."""
        directory = self.root / name / str(version)
        if not (files.is_there(directory) and (directory / LINEAGE).is_file()):
            raise UnknownVersionError(f"{name}/{version}: no such model version in {self.root}. {self._known(name)}")
        return ModelVersion(name, version, directory, files.read_json(directory / LINEAGE))

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `name/3`, `name@alias` or `name` means now. Raises ModelError."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise ModelError(f"{reference}: not a model reference; write name/3, name@prod or name.")
        name, version, alias = match["name"], match["version"], match["alias"]
        if version is not None:
            return self.get(name, int(version))
        self.require(name, reference)
        if alias is None:
            return self.get(name, self._meant(name))
        aliases = self.aliases(name)
        if alias not in aliases:
            raise UnknownVersionError(f"{reference}: {name} has no alias {alias}. {self._known(name)}")
        return self.get(name, aliases[alias])

    def require(self, name: str, reference: str = "") -> None:
        """Raises UnknownVersionError if no version has this name."""
        if not self.versions(name):
            raise UnknownVersionError(f"{reference or name}: no such model in {self.root}. {self._known(name)}")

    def owner(self, name: str) -> str | None:
        """The project whose job registered its first version; None: there is none, or it was made without one."""
        first = next(iter(self.versions(name)), None)
        return None if first is None else self.get(name, first).lineage.get("project")

    def evaluations(self, name: str) -> Evaluations:
        """What was found out about its versions."""
        return Evaluations(self.root / name)

    def gates(self, name: str) -> Gates:
        """What those of its versions say now."""
        return Gates(
            name, self.versions(name), lambda version: self.get(name, version).lineage, self.evaluations(name),
            self.aliases(name).get(PROD),
        )  # fmt: skip

    def promote(
        self,
        name: str,
        version: int,
        alias: str = PROD,
        expected: int | EllipsisType | None = ...,
        *,
        generation: int | None = None,
        force: bool = False,
        because: str | None = None,
        by: str | None = None,
    ) -> int | None:
        """Point `alias` at `version`; returns where it pointed before (None: it was unset). The history shows why
        (`because`) and who did it (`by`).

        Raises ModelError; GateError if `alias` is `prod` and the version does not pass its gate, unless `force`, which
        the history then shows; ConflictError if `expected` is given (None: unset) and not where it points now, or if
        anything about the name changed since `generation`; StorageError if it is not its turn within seconds.
        """
        self.get(name, version)
        if not re.fullmatch(ALIAS, alias):
            raise ModelError(f"{alias!r}: an alias is letters, digits, - and _.")
        with self._writing(name, busy=_BUSY):
            state = self.state(name)
            was = state.aliases.get(alias)
            _require_expected(f"{name}@{alias}", was, expected)
            _require_unchanged(name, state, generation)
            if was != version:
                against = self._against(name, version, alias, force=force)
                more = {"forced": against, "because": because, "by": by}
                book.move(self.root / name, alias, version, **{key: value for key, value in more.items() if value})
        return was

    def rollback(self, name: str, alias: str = PROD, expected: int | EllipsisType | None = ...) -> tuple[int, int]:
        """(version, was): `alias` back where it was before its last move; once more goes one move further back.

        Raises ModelError if there is nothing before, or that version is gone; else as `promote` does.
        """
        self.require(name)
        with self._writing(name, busy=_BUSY):
            state = self.state(name)
            _require_expected(f"{name}@{alias}", state.aliases.get(alias), expected)
            version = self.get(name, state.before(alias)).version
            book.move(self.root / name, alias, version, rollback=True)
        return version, state.aliases[alias]

    def set_canary(
        self, name: str, percent: float, *, generation: int | None = None, because: str | None = None
    ) -> None:
        """Send so much of the name's traffic to the version that its alias `candidate` points at; 0 ends it.

        Raises ModelError; ConflictError if anything about the name changed since `generation`; StorageError if it is
        not its turn within seconds.
        """
        self.require(name)
        if not 0 <= percent <= 100:
            raise ModelError(f"{percent}: a canary takes 0 to 100 percent of the traffic.")
        with self._writing(name, busy=_BUSY):
            state = self.state(name)
            if percent and CANDIDATE not in state.aliases:
                raise ModelError(f"{name}: no version is its {CANDIDATE} yet; promote one to that alias first.")
            _require_unchanged(name, state, generation)
            if percent != state.percent:
                book.set_share(self.root / name, percent, **({"because": because} if because else {}))

    @contextmanager
    def _writing(self, name: str, busy: str | None = None) -> Iterator[None]:
        """The one writer of `name`; what killed ones left is gone. With words in `busy` it waits `_MOVE_SECONDS`."""
        with files.locked(self.root / name / ".lock", busy=busy, seconds=_MOVE_SECONDS):
            files.remove_leftovers(self.root / name)
            yield

    def _against(self, name: str, version: int, alias: str, *, force: bool) -> list[str]:
        """What its gate has against it. Raises GateError unless `force`."""
        reasons = (self.gates(name).refusals(version) or []) if alias == PROD else []
        if reasons and not force:
            raise GateError(
                f"{name}/{version} does not pass its gate: {'; '.join(reasons)}. Evaluate it (bco evaluate SPEC "
                f"--model {name}/{version}), or override the gate (--force, or force: true): the history shows that.",
                reasons,
            )
        return reasons

    def _of_run(self, name: str, run: Any) -> ModelVersion | None:
        """The version that a run registered."""
        known = (self.get(name, version) for version in self.versions(name))
        return next((version for version in known if run is not None and version.lineage.get("run") == run), None)

    def _meant(self, name: str) -> int:
        if (number := self.gates(name).meant()) is None:
            newest = f"{name}/{self.versions(name)[-1]}"
            raise UnknownVersionError(
                f"{name}: no version has passed its gate yet, so the bare name means none. Name one, as {newest}: show "
                "says what is against it, evaluate it, or promote it with --force."
            )
        return number

    def _known(self, name: str) -> str:
        if versions := self.versions(name):
            return f"Versions: {', '.join(map(str, versions))}; aliases: {self.aliases(name) or 'none'}."
        return f"Registered models: {', '.join(self.names()) or 'none'}. Is it the right storage directory?"


def _require_owner(name: str, owner: str | None, project: str | None) -> None:
    if owner not in {None, EVERYBODYS} and project not in {None, owner}:
        raise ModelError(
            f"{name}: another project has registered a model of this name meanwhile, and this version would be served "
            "in its place. The run's directory has what was trained; send the job again with another suffix."
        )


def _require_expected(alias: str, now: int | None, expected: int | EllipsisType | None) -> None:
    if expected is not ... and now != expected:
        raise ConflictError(f"{alias} is {now}, not {expected}: somebody moved it first.")


def _require_unchanged(name: str, state: Aliases, generation: int | None) -> None:
    if generation is not None and generation != state.generation:
        raise ConflictError(f"{name}: somebody moved its aliases or its canary first.")


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file that makes the version what it is, by its path in the directory."""
    paths = (p for p in files.list_files(directory) if p != directory / LINEAGE)
    try:
        return {p.relative_to(directory).as_posix(): files.sha256(p) for p in paths}
    except OSError as error:
        raise ModelError(f"{error.filename or directory}: cannot be read ({error.strerror}).") from None
