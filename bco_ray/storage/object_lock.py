"""Alone in an object store, with nothing but put, list and delete: who wants in lays down a claim and looks round.

Only who finds no claim but its own is in; else it takes its claim back and tries again a little later. A listing that
begins after a put has ended shows it (S3 and GCS promise so), hence of two that both got in, the one that looked later
would have seen the other's claim. A claim is renewed while it is held; one that is old belongs to a process that died.
How old others' claims are is told by the store's clock; whether the own one may have been taken for dead, by ours.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bco_ray.errors import StorageError
from bco_ray.storage.objects import ObjectPath
from bco_ray.telemetry import logger

RENEWED_SECONDS = 10.0
DEAD_SECONDS = 60.0
"""A claim not renewed for so long belongs to nobody."""

SURE_SECONDS = 45.0
"""Who has not heard for so long that its claim was renewed counts it as lost: before anybody else may."""

PAUSE_SECONDS = 0.2
LEAST_WAIT_SECONDS = 75.0
"""Where nobody says how long to wait: whoever died less than a minute ago still seems to be there."""

_held: set[_Claim] = set()


@contextmanager
def held(directory: ObjectPath, *, busy: str | None = None, seconds: float = 0) -> Iterator[None]:
    """Alone in the body among those that hold claims below `directory`.

    Waits for its turn; with words in `busy` at most `seconds` (LEAST_WAIT_SECONDS if that is 0), then it raises
    StorageError with them. Raises StorageError after the body if the claim was lost meanwhile.
    """
    claim = _taken(directory, busy, seconds or LEAST_WAIT_SECONDS)
    _held.add(claim)
    try:
        yield
        claim.require()
    finally:
        _held.discard(claim)
        claim.give_up()


def require_held(path: ObjectPath) -> None:
    """Before what is below `path` is made to count. Raises StorageError if a lock around it was lost."""
    for claim in list(_held):
        if path.is_relative_to(claim.path.parent.parent):
            claim.require()


def _taken(directory: ObjectPath, busy: str | None, seconds: float) -> _Claim:
    began = time.monotonic()
    told = False
    while (claim := _Claim.alone(directory / uuid.uuid4().hex)) is None:
        waited = time.monotonic() - began
        if busy is not None and waited >= seconds:
            raise StorageError(f"{directory.parent}: {busy}")
        if not told and waited > RENEWED_SECONDS:
            logger.info("%s: waiting for another process there, or for one that died within the minute", directory)
            told = True
        time.sleep(random.uniform(0.5, 1.5) * PAUSE_SECONDS)
    return claim


class _Claim:
    """One that nobody else's stood beside when it was laid down; a thread renews it."""

    def __init__(self, path: ObjectPath, since: float) -> None:
        self.path = path
        self._renewed = since
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @classmethod
    def alone(cls, path: ObjectPath) -> _Claim | None:
        """A claim laid down now, or None if there are others; then it is taken back."""
        since = time.monotonic()
        try:
            path.write_bytes(b"")
            if _only(path):
                return cls(path, since)
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
        return None

    def require(self) -> None:
        """Raises StorageError if somebody else may be in by now."""
        if self._lost or time.monotonic() - self._renewed > SURE_SECONDS:
            raise StorageError(
                f"{self.path.parent}: taken over by another process, or it may be: this one stood still, or the "
                "storage did not answer, for too long. Run it again."
            )

    def give_up(self) -> None:
        """Let others in."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_SECONDS):
            since = time.monotonic()
            with suppress(OSError):  # tried again
                if not self.path.exists():
                    self._lost = True
                    return
                self.path.write_bytes(b"")
                if time.monotonic() - self._renewed > SURE_SECONDS:  # too late: it may stand beside another's now
                    self._lost = True
                    self.path.unlink(missing_ok=True)
                    return
                self._renewed = since


def _only(claim: ObjectPath) -> bool:
    """Whether it is the only living one. Dead ones are removed."""
    renewed = {found.name: found.modified_ns / 1e9 for found in claim.parent.entries() if not found.is_directory}
    now = renewed.pop(claim.name, None)
    if now is None:
        return False
    dead = [name for name, at in renewed.items() if now - at > DEAD_SECONDS]
    for name in dead:
        (claim.parent / name).unlink(missing_ok=True)
    if len(renewed) > len(dead):
        return False
    return not dead or _only(claim)  # somebody who saw the dead one too may have come between
