"""What a model's names mean: `aliases.json`, `canary.json`, and `history.json`, which is written ahead of both.

A change counts once it is in its own file; a last entry of the history that never came to that did not happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from bco_ray.errors import ModelError
from bco_ray.storage import files

CANDIDATE = "candidate"
"""The alias whose version a canary tries out."""

PROD = "prod"
"""What a bare name means: the alias with a gate before it."""


@dataclass(frozen=True)
class Canary:
    """`percent` (0 to 100) of a name's traffic goes to the version that `alias` points at."""

    alias: str
    percent: float


@dataclass(frozen=True)
class Aliases:
    """One moment of one name: alias -> version, the canary, and every change that led there, oldest first.

    An entry of the history is a move `{alias, version, was, at}` (`rollback: true` if it went back, `forced`: what was
    against it), or a canary's new share `{canary, was, at}`; `because`: why, where nobody but the server did it; `by`:
    who, where it was done on the command line.
    """

    aliases: dict[str, int]
    canary: Canary | None
    history: tuple[dict[str, Any], ...]

    @property
    def generation(self) -> int:
        """Grows with every change, so that who follows need only compare two numbers."""
        return len(self.history)

    @property
    def percent(self) -> float:
        """Of the canary; 0 without one."""
        return self.canary.percent if self.canary else 0

    def before(self, alias: str) -> int:
        """The version a rollback goes to. Raises ModelError if there is none."""
        if (version := self.earlier(alias)) is None:
            raise ModelError(f"{alias}: there is no earlier version to go back to; promote the one you want.")
        return version

    def earlier(self, alias: str) -> int | None:
        """Each rollback takes back the last move not yet taken back; None: there is none before."""
        earlier: list[int | None] = [None]
        for move in self.history:
            if move.get("alias") != alias:
                continue
            if move.get("rollback"):
                earlier.pop()
            else:
                earlier.append(move["was"])
        return earlier[-1]


def read(directory: Path) -> Aliases:
    """The state at one moment, without a lock: each writer begins with the history, so one that stays the same while
    the rest is read had no writer beside it.
    """
    while True:
        history, aliases = _read(directory, "history", []), _read(directory, "aliases", {})
        canary = _read(directory, "canary", None)
        if history == _read(directory, "history", []):
            return _settled(aliases, Canary(**canary) if canary and canary["percent"] else None, history)


def move(directory: Path, alias: str, version: int, **more: Any) -> None:
    """Point an alias at a version; `more` is said of it in the history. The caller holds the lock."""
    now = read(directory)
    entry = {"alias": alias, "version": version, "was": now.aliases.get(alias), "at": int(time())}
    _note(directory, now, entry | more)
    files.write_json(directory / "aliases.json", {**now.aliases, alias: version})


def set_share(directory: Path, percent: float, **more: Any) -> None:
    """Send a share of the traffic to the candidate, or with 0 none; `more` as in `move`. The caller holds the lock."""
    now = read(directory)
    _note(directory, now, {"canary": percent, "was": now.percent, "at": int(time()), **more})
    files.write_json(directory / "canary.json", {"alias": CANDIDATE, "percent": percent})


def _settled(aliases: dict[str, int], canary: Canary | None, history: list[dict[str, Any]]) -> Aliases:
    """Without the last entry if its writer died before, or is just about to make it true."""
    found = Aliases(aliases, canary, tuple(history))
    if not history:
        return found
    last = history[-1]
    happened = found.percent == last["canary"] if "canary" in last else aliases.get(last["alias"]) == last["version"]
    return found if happened else Aliases(aliases, canary, found.history[:-1])


def _note(directory: Path, now: Aliases, entry: dict[str, Any]) -> None:
    files.write_json(directory / "history.json", [*now.history, entry])


def _read(directory: Path, what: str, otherwise: Any) -> Any:
    path = directory / f"{what}.json"
    return files.read_json(path) if path.is_file() else otherwise
