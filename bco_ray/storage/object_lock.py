"""Alone in an object store, with nothing but put, list and delete: who wants in lays down a claim and looks round.

Only who finds no claim but its own is in; else it takes its claim back and tries again a little later. A listing that
begins after a put has ended shows it (S3 and GCS promise so), hence of two that both got in, the one that looked later
would have seen the other's claim. A claim is renewed while it is held; one that is old belongs to a process that died.
Age is told by the store's clock alone.
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

RENEWED_SECONDS = 10.0
DEAD_SECONDS = 60.0
"""A claim not renewed for so long belongs to nobody."""

PAUSE_SECONDS = 0.2


@contextmanager
def held(directory: ObjectPath, *, busy: str | None = None, seconds: float = 0) -> Iterator[None]:
    """Alone in the body among those that hold claims below `directory`.

    Waits for its turn; with words in `busy` at most so long, then it raises StorageError with them. Raises StorageError
    after the body if the claim was lost meanwhile: this process stood still for longer than DEAD_SECONDS.
    """
    claim = directory / uuid.uuid4().hex
    deadline = None if busy is None else time.monotonic() + seconds
    while not _alone(claim):
        if deadline is not None and time.monotonic() >= deadline:
            raise StorageError(f"{directory.parent}: {busy}")
        time.sleep(random.uniform(0.5, 1.5) * PAUSE_SECONDS)
    renewing = _Renewing(claim)
    try:
        yield
    finally:
        lost = renewing.end()
    if lost:
        raise StorageError(f"{directory}: taken over by another process while this one stood still; run it again.")


def _alone(claim: ObjectPath) -> bool:
    """Whether the claim, laid down now, is the only living one. If not, it is taken back."""
    claim.write_bytes(b"")
    renewed = {found.name: found.modified_ns / 1e9 for found in claim.parent.entries() if not found.is_directory}
    now = renewed.get(claim.name)
    if now is None:
        return False
    others = [claim.parent / name for name in renewed if name != claim.name]
    dead = [path for path in others if now - renewed[path.name] > DEAD_SECONDS]
    for path in dead:
        path.unlink(missing_ok=True)
    if len(others) > len(dead):
        claim.unlink(missing_ok=True)
        return False
    return not dead or _alone(claim)  # somebody who saw the dead one too may have come between


class _Renewing:
    """A thread that says again and again that the claim's holder lives."""

    def __init__(self, claim: ObjectPath) -> None:
        self._claim = claim
        self._over = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def end(self) -> bool:
        """Give the claim up. Whether it had been lost before."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            self._lost = self._lost or not self._claim.exists()
            self._claim.unlink(missing_ok=True)
        return self._lost

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_SECONDS):
            with suppress(OSError):  # tried again; what counts is whether the claim is still there
                if not self._claim.exists():
                    self._lost = True
                    return
                self._claim.write_bytes(b"")
