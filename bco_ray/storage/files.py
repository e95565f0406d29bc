"""Files that are either whole or absent: atomic writes, digests, and directories committed by a manifest written last.

A reader that finds `manifest.json` may trust every file the manifest names; one that does not find it sees nothing.
A place is a local directory or one in an object store (`storage.objects.ObjectPath`): all of this works on both.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from bco_ray.errors import SpecError, StorageError
from bco_ray.storage import disk, object_lock
from bco_ray.storage.objects import ObjectPath, is_uri

MANIFEST = "manifest.json"
LOCK = ".lock"

Facts = Mapping[str, Mapping[str, Any]]
"""Name -> `bytes` and `sha256`."""


def path_of(place: str) -> Path:
    """A local path, or an ObjectPath, which can do what storage asks of a Path. Raises SpecError for `..` in a URI."""
    if not is_uri(place):
        return Path(place)
    if ".." in place.split("/"):
        raise SpecError(f"{place}: no '..' in a URI; write where it leads.")
    return cast(Path, ObjectPath(place))


def storage_directory(place: str) -> Path:
    """The directory that a storage setting names, created if it is local. Raises SpecError."""
    return path_of(place.rstrip("/")) if is_uri(place) else local_directory(place)


def local_directory(place: str) -> Path:
    """A directory of this machine's, created. Raises SpecError."""
    if "://" in place and not place.startswith("file://"):
        raise SpecError(f"{place}: not a local directory; object stores that can be written to are s3:// and gs://.")
    path = Path(place.removeprefix("file://")).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"output.storage: {path}: no such directory can be made ({error.strerror}).") from None
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write so that `path` holds all of `data` or what it held before, also after a crash."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
    else:
        disk.write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. NaN is refused: it is no JSON. Half a surrogate pair, as in a file's name
    that is no UTF-8, becomes JSON's escape of it.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Raises StorageError naming the file if it is missing or torn."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(f"{path}: missing. It was deleted, or the step that writes it has not finished.") from None
    except ValueError as error:
        raise StorageError(
            f"{path}: not valid JSON ({error}). Delete it and run the step that writes it again."
        ) from None


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """A short content address (16 hex digits) of a JSON-able value; key order does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def list_files(directory: Path) -> Iterator[Path]:
    """Every regular file below `directory`, sorted, but the manifest and a lock."""
    found = directory.rglob("*")
    there = found if isinstance(directory, ObjectPath) else (path for path in sorted(found) if path.is_file())
    return (p for p in there if p != directory / MANIFEST and p.relative_to(directory).parts[0] != LOCK)


def commit_directory(directory: Path, facts: dict[str, Any], known: Facts | None = None) -> None:
    """Write the manifest: `facts` plus name, size and digest of every file. From here on the directory counts.

    Files in `known` are not read again for it. Raises StorageError if one of those is not there, or a lock was lost.
    """
    if not isinstance(directory, ObjectPath):
        disk.sync_tree(directory)
    known = known or {}
    names = {p.relative_to(directory).as_posix(): p for p in list_files(directory)}
    if gone := sorted(known.keys() - names.keys()):
        raise StorageError(f"{directory / gone[0]}: it was written, and is not there. Run it again.")
    if isinstance(directory, ObjectPath):
        object_lock.require_held(directory)
    listed = {name: dict(known[name]) if name in known else file_facts(path) for name, path in names.items()}
    write_json(directory / MANIFEST, {**facts, "files": listed})


def file_facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def facts_of(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file with that content."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_committed(directory: Path) -> bool:
    """Whether the commit mark is there."""
    return (directory / MANIFEST).is_file()


def verify_directory(directory: Path) -> dict[str, Any]:
    """The manifest of a committed directory, all its files checked. Raises StorageError naming the first bad one."""
    manifest: dict[str, Any] = read_json(directory / MANIFEST)
    for name, fact in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != fact["bytes"] or sha256(path) != fact["sha256"]:
            raise StorageError(f"{path}: missing or not what {MANIFEST} says.")
    return manifest


def remove_tree(directory: Path) -> None:
    """Everything below a directory, and itself. Raises FileNotFoundError if a local one is not there."""
    if isinstance(directory, ObjectPath):
        _mark_of(directory).unlink(missing_ok=True)
        directory.remove_tree()
    else:
        shutil.rmtree(directory)


def clear_directory(directory: Path) -> None:
    """Remove what an interrupted writer left in `directory`, which its caller holds the lock of."""
    for path in list(directory.iterdir()):
        if path.name == LOCK:
            continue
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()


def remove_scraps(directory: Path) -> None:
    """Files anywhere below `directory` that a killed writer did not come to name; nobody may be writing there."""
    if not isinstance(directory, ObjectPath):
        for path in directory.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove the scratch files and directories of killed writers; nobody else may be writing in `directory`."""
    for path in () if isinstance(directory, ObjectPath) else directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(path: Path, *, busy: str | None = None, seconds: float = 0) -> Iterator[None]:
    """Alone in the body among the processes that share the storage; a process that dies lets go.

    Waits for its turn; with words in `busy` at most so long, then it raises StorageError with them.
    """
    if isinstance(path, ObjectPath):
        with object_lock.held(path, busy=busy, seconds=seconds):
            yield
        return
    disk.make_directory(path.parent)
    with path.open("w") as file:
        if busy is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not _locked_within(file, seconds):
            raise StorageError(f"{path.parent}: {busy}")
        yield


def _locked_within(file: IO[str], seconds: float) -> bool:
    """Pauses grow from a fraction of a millisecond: most who hold a lock are done by then."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(0.005, 2 * pause)
        else:
            return True


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A local scratch directory that becomes `final` if the body succeeds and disappears if it does not.

    `is_there` says whether it did: a local one by a rename, one in an object store by a mark that is uploaded last.
    """
    if isinstance(final, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="bco-new-") as made:
            yield Path(made)
            _upload(Path(made), final)
        return
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    disk.make_directory(final.parent)
    scratch.mkdir()
    try:
        yield scratch
        disk.sync_tree(scratch)
        scratch.rename(final)
        disk.sync_directory(final.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_there(directory: Path) -> bool:
    """Whether `new_directory` made it, to its end."""
    return _mark_of(directory).is_file() if isinstance(directory, ObjectPath) else directory.is_dir()


def made_at(directory: Path) -> float:
    """When `new_directory` made it, in unix seconds."""
    return (_mark_of(directory) if isinstance(directory, ObjectPath) else directory).stat().st_mtime


def _upload(made: Path, final: ObjectPath) -> None:
    remove_tree(cast(Path, final))  # what somebody who was killed here had uploaded
    for path in list_files(made):
        (final / path.relative_to(made).as_posix()).upload(path)
    object_lock.require_held(final)
    _mark_of(final).write_bytes(b"")


def _mark_of(directory: ObjectPath) -> ObjectPath:
    return directory.with_name(f".{directory.name}.whole")
