"""Bytes by name: the small protocol under checkpoints, on a directory or in an object store.

A name is a path relative to the store's root. Whoever reads a name finds the whole of what was last put there;
`bco_ray.testing.faulty_store` has a store that fails, waits and tears, on purpose.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from bco_ray.errors import DataError, StorageError
from bco_ray.storage import disk, files, locations

COPIED_AT_ONCE = 16 << 20

Write = Callable[[Path], None]
"""Writes a file at the path it is given."""


class FileFact(BaseModel):
    """What a file is known by: its size, and the SHA-256 of its bytes in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFact:
        """Of a local file."""
        return cls(bytes=path.stat().st_size, sha256=files.sha256(path))


class Store(Protocol):
    """Every method raises OSError if the storage fails, and FileNotFoundError if a name to be read is not there."""

    def put(self, name: str, write: Write) -> FileFact:
        """What `write` writes becomes `name`, durably, when this returns."""

    def get(self, name: str) -> bytes:
        """All of a small file."""

    def local(self, name: str) -> AbstractContextManager[Path]:
        """Inside it, `name` is a local file."""

    def sizes(self, directory: str = "") -> dict[str, int]:
        """Name -> bytes of everything below `directory`; nothing if there is no such thing."""

    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if it is not there."""


def open_store(uri: str) -> Store:
    """The store at a local path, `s3://` or `gs://`. Raises SpecError for what cannot be written to."""
    if "://" in uri and not uri.startswith("file://"):
        return ObjectStore(uri)
    return DirectoryStore(files.local_directory(uri))


def put_bytes(store: Store, name: str, data: bytes) -> FileFact:
    """`data` as `name`."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return store.put(name, write)


class DirectoryStore:
    """Below a local or mounted directory: written under another name, synced, renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, write: Write) -> FileFact:
        final = self.root / name
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
        try:
            write(scratch)
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            fact = FileFact.of(scratch)
            scratch.replace(final)
        finally:
            scratch.unlink(missing_ok=True)
        disk.sync_directory(final.parent)
        return fact

    def get(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def sizes(self, directory: str = "") -> dict[str, int]:
        found = {}
        for path in (self.root / directory).rglob("*"):
            with suppress(FileNotFoundError):  # renamed by its writer since it was listed
                if not path.is_dir():
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def delete(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            if path.parent != self.root:
                path.parent.rmdir()


class ObjectStore:
    """Below `s3://bucket/prefix` or `gs://bucket/prefix`: one upload per name, made from a local scratch file."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        locations.filesystem_of(self.uri)  # a scheme that nobody knows is better refused now

    def put(self, name: str, write: Write) -> FileFact:
        with _scratch() as path:
            write(path)
            fact = FileFact.of(path)
            with _as_os_error(), path.open("rb") as source:
                locations.write_stream(self._of(name), iter(lambda: source.read(COPIED_AT_ONCE), b""))
        return fact

    def get(self, name: str) -> bytes:
        with _as_os_error():
            self._require(name)
            with locations.open_input(self._of(name)) as source:
                return source.read()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with _scratch() as path:
            with _as_os_error():
                self._require(name)
                with locations.open_input(self._of(name)) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, COPIED_AT_ONCE)
            yield path

    def sizes(self, directory: str = "") -> dict[str, int]:
        base = self._of(directory) if directory else self.uri
        with _as_os_error():
            if not locations.exists(base):
                return {}
            found = locations.list_directory(base, recursive=True)
        return {entry.uri.removeprefix(f"{self.uri}/"): entry.bytes for entry in found if not entry.is_directory}

    def delete(self, name: str) -> None:
        with _as_os_error():
            locations.delete(self._of(name))

    def _of(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _require(self, name: str) -> None:
        if not locations.exists(self._of(name)):
            raise FileNotFoundError(f"{self._of(name)}: no such object.")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bco-store-") as directory:
        yield Path(directory) / "file"


@contextmanager
def _as_os_error() -> Iterator[None]:
    """`locations` names the place and the way out; what callers of a store tell apart is OSError from all else."""
    try:
        yield
    except (StorageError, DataError) as error:
        raise OSError(str(error)) from error
