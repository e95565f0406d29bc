"""A path below `s3://` or `gs://` that has pathlib's methods, as far as storage uses them.

Only names and whole objects exist there: nobody makes a directory, and an emptied one may still seem to be there. A
write of up to ONE_PUT_BYTES replaces an object at once; an interruption may cut a longer one short, so those count by
a mark or a digest. Every method raises OSError if the store cannot be asked, FileNotFoundError if what is to be read
is not there.
"""

from __future__ import annotations

import fnmatch
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from bco_ray.errors import DataError, SpecError, StorageError
from bco_ray.storage import locations

SCHEMES = ("s3://", "gs://")

ONE_PUT_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class ObjectStat:
    """What `os.stat_result` would say of it. `st_mtime` is the store's own time."""

    st_size: int
    st_mtime: float


class ObjectPath(PurePosixPath):
    """`ObjectPath("s3://bucket/key")`. Pickles as its URI; credentials are those of the process that uses it."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if rest else scheme

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self}: not a path of the operating system's")

    def exists(self) -> bool:
        """Whether an object, or any below it, is there."""
        return self._found() is not None

    def is_file(self) -> bool:
        """Whether it is an object."""
        found = self._found()
        return found is not None and not found.is_directory

    def is_dir(self) -> bool:
        """Whether objects are below it."""
        found = self._found()
        return found is not None and found.is_directory

    def stat(self) -> ObjectStat:
        """Of an object."""
        found = self._found()
        if found is None:
            raise FileNotFoundError(f"{self}: no such object.")
        return ObjectStat(found.bytes, found.modified_ns / 1e9)

    def iterdir(self) -> Iterator[ObjectPath]:
        """What is directly below it."""
        return (self / found.name for found in self.entries())

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects anywhere below it whose last name matches. No directories."""
        return (path for path in self.objects() if fnmatch.fnmatchcase(path.name, pattern))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """As in a shell: what starts with a dot is matched by a pattern that does."""
        with _as_os_error():
            if pattern.startswith("."):
                return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
            return (ObjectPath(found.uri) for found in locations.glob(f"{self}/{pattern}"))

    def objects(self) -> Iterator[ObjectPath]:
        """All below it, in order. Raises OSError for a name that would lead out of a directory it is copied to."""
        for found in self.entries(recursive=True):
            if ".." in found.uri.split("/"):
                raise OSError(f"{found.uri}: a name with '..' in it; rename or remove that object.")
            if not found.is_directory:
                yield ObjectPath(found.uri)

    def entries(self, *, recursive: bool = False) -> list[locations.Found]:
        """What is below it, at one moment."""
        with _as_os_error():
            return locations.list_directory(str(self), recursive=recursive, missing_ok=True)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """For reading bytes. What is written is written whole, by `write_bytes`."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self}: an object cannot be opened as {mode!r}")
        return io.BufferedReader(self.open_raw(), locations.BUFFER_BYTES)

    def open_raw(self) -> io.RawIOBase:
        """Seekable and without a buffer, for readers that seek about."""
        with _as_os_error():
            return _Opened(locations.open_raw(str(self)))

    def read_bytes(self) -> bytes:
        """All of an object."""
        with self.open_raw() as file:
            return file.readall()

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of an object."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Replace the object, in one request."""
        with _as_os_error():
            locations.write_stream(str(self), [data])
        return len(data)

    def upload(self, source: Path) -> None:
        """Replace the object by a local file's bytes."""
        block = ONE_PUT_BYTES if source.stat().st_size <= ONE_PUT_BYTES else _BLOCK_BYTES
        with _as_os_error(), source.open("rb") as file:
            locations.write_stream(str(self), iter(lambda: file.read(block), b""))

    def download(self, target: Path) -> None:
        """All of the object into a local file."""
        with self.open_raw() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK_BYTES)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        if not missing_ok:
            self.stat()
        with _as_os_error():
            locations.delete(str(self))

    def remove_tree(self) -> None:
        """Remove all that is below it."""
        with _as_os_error():
            locations.delete_tree(str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: it is there as soon as something is below it."""

    def resolve(self) -> ObjectPath:
        """Itself: there are no links."""
        return self

    absolute = expanduser = resolve

    def _found(self) -> locations.Found | None:
        with _as_os_error():
            return locations.stat(str(self))


def is_uri(place: str) -> bool:
    """Whether a place is in an object store that can be written to."""
    return place.startswith(SCHEMES)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """`locations` names the place and the way out; callers of a path tell apart OSError and all else."""
    try:
        yield
    except (StorageError, DataError, SpecError) as error:
        kind = FileNotFoundError if isinstance(error.__cause__, FileNotFoundError) else OSError
        raise kind(str(error)) from error


class _Opened(io.RawIOBase):
    """An object that is read: what fails is OSError."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        with _as_os_error():
            return self._raw.readinto(buffer)

    def read(self, size: int = -1, /) -> bytes:
        with _as_os_error():
            return self._raw.read(size) or b""

    def readall(self) -> bytes:
        return self.read()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _as_os_error():
            return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()
        super().close()
