"""Files of lines that one process writes and others follow. An object store cannot append: there it is a local file
whose object is replaced now and then, and wholly before anything relies on it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bco_ray.storage.objects import ObjectPath

UPLOAD_SECONDS = 2.0
UPLOAD_SHARE = 0.02
"""Of the time may go into uploading, however long the file is."""

AGAIN_SECONDS = 15.0
"""After a failure."""


class LineTail:
    """What a file has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file_id = 0
        self._last = b""

    def read(self) -> list[bytes]:
        """Whole lines not seen yet. All of them again once the file was replaced by a shorter one, as a resumed run
        does. Nothing while it is not there. Raises OSError if it cannot be read.
        """
        try:
            data = self._news_of_object(self._path) if isinstance(self._path, ObjectPath) else self._news()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines(keepends=True)
        self._last = lines[-1] if lines else self._last
        return [line.removesuffix(b"\n") for line in lines]

    def _news(self) -> bytes:
        """Who truncates a local file replaces it."""
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file_id or status.st_size < self._offset:
                self._file_id, self._offset = status.st_ino, 0
            file.seek(self._offset)
            return file.read()

    def _news_of_object(self, path: ObjectPath) -> bytes:
        """Every write replaces an object: if the last line seen is still in its place, it is the same file, longer."""
        if path.stat().st_size < self._offset:
            self._offset, self._last = 0, b""
        with path.open() as file:
            file.seek(self._offset - len(self._last))
            data = file.read()
            if data.startswith(self._last):
                return data[len(self._last) :]
            self._offset, self._last = 0, b""
            file.seek(0)
            return file.read()


class Uploaded:
    """The local file `local`, which begins as what the object holds, and the object it becomes. `allowed` raises what
    this process is to end with if it must not write any more; it is asked before each upload.
    """

    def __init__(self, target: ObjectPath, allowed: Callable[[], None]) -> None:
        self._target = target
        self._allowed = allowed
        self._scratch = tempfile.TemporaryDirectory(prefix="bco-growing-")
        self.local = Path(self._scratch.name) / target.name
        self._due_at = 0.0
        if target.exists():
            target.download(self.local)

    def changed(self) -> None:
        """It has grown: upload it if it is time. Raises OSError."""
        if time.monotonic() >= self._due_at:
            self.upload()

    def upload(self) -> None:
        """Now. Raises OSError."""
        began = time.monotonic()
        wait = AGAIN_SECONDS
        try:
            self._allowed()
            self._target.upload(self.local)
            wait = UPLOAD_SECONDS
        finally:
            self._due_at = time.monotonic() + max(wait, (time.monotonic() - began) / UPLOAD_SHARE)
