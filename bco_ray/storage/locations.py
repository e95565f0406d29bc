"""Where bytes live: local paths, `s3://bucket/key`, `gs://bucket/key` and `hf://datasets/org/name[@revision]/path`.

Places are strings, so whatever holds one can be sent to another machine; credentials and endpoints come from the
environment of the process that opens it. Cloud libraries are imported when a URI first needs them.
"""

from __future__ import annotations

import glob as local_glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from bco_ray.errors import BcoError, DataError, SpecError, StorageError
from bco_ray.storage import disk

BUFFER_BYTES = 4 << 20
"""What one request to an object store fetches when a file is read from front to back."""

_WAY_OUT = {
    "file": "Check the path and its permissions.",
    "s3": "Check bucket and key, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL.",
    "gs": "Check bucket and key, and GOOGLE_APPLICATION_CREDENTIALS.",
    "hf": "Check the data set's name and revision, HF_TOKEN (private data) and HF_ENDPOINT.",
}
_HF = re.compile(r"(datasets/[^/@*?]+/[^/@*?]+)(?:@(refs/convert/[^/]+|refs/pr/\d+|[^/]+))?(/.*)?")
_WILD = re.compile(r"[*?]")


@dataclass(frozen=True)
class Found:
    """A file or directory. `modified_ns` is 0 where the store does not say; a directory has no size."""

    uri: str
    bytes: int
    modified_ns: int
    is_directory: bool

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.uri.rpartition("/")[2]


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The pyarrow file system a URI is on, and its path there. Raises SpecError for a scheme nobody knows."""
    scheme, path = _split(uri)
    return _filesystem(scheme, path), path


def open_raw(uri: str) -> io.RawIOBase:
    """A seekable file without a buffer, for readers that seek about. Raises DataError, then and at every read."""
    with _named(uri, DataError):
        system, path = filesystem_of(uri)
        return _Input(uri, system.open_input_file(path))


def open_input(uri: str) -> io.BufferedReader:
    """A seekable buffered file. Raises DataError, then and at every read."""
    return io.BufferedReader(open_raw(uri), BUFFER_BYTES)


def write_bytes(uri: str, data: bytes) -> None:
    """All of `data` or what was there before: a rename on a file system, one upload elsewhere. Raises StorageError."""
    scheme, path = _split(uri)
    if scheme == "file":
        with _named(uri, StorageError):
            disk.write_bytes(Path(path), data)
    else:
        write_stream(uri, [data])


def write_stream(uri: str, blocks: Iterable[bytes]) -> None:
    """One upload to an object store of blocks laid end to end. Raises StorageError."""
    scheme, path = _split(uri)
    if scheme == "hf":
        raise StorageError(f"{uri}: the Hub can only be read from. Write to a directory, s3:// or gs://.")
    with (
        _named(uri, StorageError),
        _filesystem(scheme, path).open_output_stream(path, compression=None) as out,  # not by its suffix
    ):
        for block in blocks:
            out.write(block)


def delete(uri: str) -> None:
    """Remove a file if it is there. Raises StorageError."""
    with _named(uri, StorageError):
        system, path = filesystem_of(uri)
        with suppress(FileNotFoundError):  # nor if somebody else was quicker
            system.delete_file(path)


def delete_tree(uri: str) -> None:
    """Remove a directory with all that is below it, if it is there. Raises StorageError."""
    with _named(uri, StorageError):
        system, path = filesystem_of(uri)
        with suppress(FileNotFoundError):
            system.delete_dir(path)


def stat(uri: str) -> Found | None:
    """What is there, or None. Raises DataError if the store cannot be asked."""
    with _named(uri, DataError):
        system, path = filesystem_of(uri)
        info = system.get_file_info(path)
    return None if info.type.name == "NotFound" else _found(_split(uri)[0], info)


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    return stat(uri) is not None


def list_directory(uri: str, *, recursive: bool = False, missing_ok: bool = False) -> list[Found]:
    """Files and directories in a directory, sorted by URI. Raises DataError if there is none."""
    from pyarrow.fs import FileSelector

    with _named(uri, DataError):
        system, path = filesystem_of(uri)
        infos = system.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=missing_ok))
    return sorted((_found(_split(uri)[0], info) for info in infos), key=lambda found: found.uri)


def glob(uri: str) -> list[Found]:
    """What a pattern with `*`, `?` and `**` (any directories) matches, sorted; without one the thing itself.

    As in a shell, wildcards pass over names that start with a dot.
    """
    scheme, path = _split(uri)
    if itself := None if _WILD.search(path) else stat(uri):
        return [itself]
    if scheme == "file":
        found = (stat(match) for match in local_glob.glob(path, recursive=True))  # noqa: PTH207 - absolute
        return sorted((f for f in found if f), key=lambda f: f.uri)
    if not (wild := _WILD.search(path)):
        return []
    start = path[: wild.start()].rpartition("/")[0]
    if not start or (scheme == "hf" and not _HF.fullmatch(start)):
        raise SpecError(f"{uri}: a wildcard must come after the bucket or data set.")
    base = f"{scheme}://{start}"
    if not exists(base):
        return []
    pattern = re.compile(_translated(f"{scheme}://{path}"))
    deep = "/" in path[len(start) + 1 :]
    return [found for found in list_directory(base, recursive=deep) if pattern.fullmatch(found.uri)]


def pinned(uri: str) -> str:
    """An `hf://` URI with its revision resolved to a commit, so that it means the same bytes for ever; others as is."""
    if not uri.startswith("hf://"):
        return uri
    from huggingface_hub import HfApi

    repository, revision, rest = _hf_parts(uri)
    with _named(uri, DataError):
        commit = HfApi().dataset_info(repository.removeprefix("datasets/"), revision=revision).sha
    return f"hf://{repository}@{commit}{rest}"


def is_repository(uri: str) -> bool:
    """Whether a URI names a whole data set on the Hub."""
    return uri.startswith("hf://") and not _hf_parts(uri)[2].strip("/")


def _split(uri: str) -> tuple[str, str]:
    scheme, mark, path = uri.partition("://")
    if not mark or scheme == "file":
        return "file", str(Path(path if mark else uri).expanduser().absolute())
    if scheme not in _WAY_OUT:
        raise SpecError(f"{uri}: unknown kind of storage; known are local paths, s3://, gs:// and hf://datasets/.")
    if scheme == "hf":
        _hf_parts(uri)
    if not path.strip("/"):
        raise SpecError(f"{uri}: names no bucket.")
    return scheme, path.rstrip("/")


def _hf_parts(uri: str) -> tuple[str, str | None, str]:
    match = _HF.fullmatch(uri.removeprefix("hf://").rstrip("/"))
    if not match:
        raise SpecError(f"{uri}: write hf://datasets/<organisation>/<name>[@<revision>][/<path>].")
    return match[1], match[2], match[3] or ""


def _filesystem(scheme: str, path: str) -> Any:
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return _s3(path.partition("/")[0], endpoint)
    return {"file": _local, "gs": _gcs, "hf": _hub}[scheme]()


@lru_cache
def _s3(bucket: str, endpoint: str) -> Any:
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    # pyarrow 26 does not read AWS_ENDPOINT_URL itself
    scheme, _, host = endpoint.rpartition("://")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return S3FileSystem(
        region=region or ("us-east-1" if endpoint else resolve_s3_region(bucket)),
        scheme=scheme or "https",
        endpoint_override=host.rstrip("/") or None,
        allow_delayed_open=True,  # a small object is one PUT instead of a multipart upload
        background_writes=False,
    )


@lru_cache
def _gcs() -> Any:
    from pyarrow.fs import GcsFileSystem

    return GcsFileSystem(retry_time_limit=timedelta(minutes=1))


@lru_cache
def _hub() -> Any:
    from huggingface_hub import HfFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(HfFileSystem()))


@lru_cache
def _local() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


def _found(scheme: str, info: Any) -> Found:
    uri = info.path if scheme == "file" else f"{scheme}://{info.path.lstrip('/')}"
    return Found(uri, info.size or 0, info.mtime_ns or 0, info.type.name == "Directory")


def _translated(pattern: str) -> str:
    pieces = {"**/": r"(?:[^/.][^/]*/)*", "**": r"(?:[^/.][^/]*/)*[^/.][^/]*", "*": "[^/]*", "?": "[^/]"}
    regex, start = "", True
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|/|[^*?/]+", pattern):
        hidden = "(?!\\.)" if start and piece in {"*", "?"} else ""
        regex += hidden + pieces.get(piece, re.escape(piece))
        start = piece.endswith("/")
    return regex


class _Input(io.RawIOBase):
    """Turns a store's failures into DataError, so that what else goes wrong while reading is the file's content."""

    def __init__(self, uri: str, file: Any) -> None:
        self._uri, self._file = uri, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        with _named(self._uri, DataError):
            return bytes(self._file.read(None if size < 0 else size))

    def readall(self) -> bytes:
        return self.read()  # in one request; the inherited one makes thousands

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _named(self._uri, DataError):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _named(uri: str, kind: type[BcoError]) -> Iterator[None]:
    scheme, _ = _split(uri)
    try:
        yield
    except _failures(scheme) as error:
        if isinstance(error, FileNotFoundError) and scheme == "file":
            raise kind(f"{uri}: no such file or directory.") from None
        verb = "written" if kind is StorageError else "read"
        missing = error if isinstance(error, FileNotFoundError) else None  # for who tells that apart
        raise kind(f"{uri}: cannot be {verb} ({error}). {_WAY_OUT[scheme]}") from missing


def _failures(scheme: str) -> tuple[type[Exception], ...]:
    if scheme != "hf":
        return (OSError,)
    from huggingface_hub import errors

    return OSError, ValueError, vars(errors)["HTTPError"]  # the HTTP library's, whichever the Hub's client uses
