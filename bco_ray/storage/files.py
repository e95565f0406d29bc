"""Files that are either whole or absent: atomic writes, digests, and directories committed by a manifest written last.

A reader that finds `manifest.json` may trust every file the manifest names; one that does not find it sees nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bco_ray.errors import SpecError, StorageError

MANIFEST = "manifest.json"


def local_directory(uri: str) -> Path:
    """The directory a storage setting names, created. Raises SpecError for object stores: not supported yet."""
    if "://" in uri and not uri.startswith("file://"):
        raise SpecError(f"output.storage: {uri}: only local (or mounted) directories can be written to so far.")
    path = Path(uri.removeprefix("file://")).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"output.storage: {path}: no such directory can be made ({error.strerror}).") from None
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write so that `path` holds all of `data` or what it held before, also after a crash."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Create it and its parents, so that it is still there after a power cut."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    _sync(directory)


def sync_tree(directory: Path) -> None:
    """Make everything in and below `directory` durable, as it must be before a rename or a manifest makes it count."""
    for path in (*directory.rglob("*"), directory):
        if path.is_file() or path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. NaN is refused: it is no JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


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
    unlisted = {directory / MANIFEST, directory / ".lock"}
    return (p for p in sorted(directory.rglob("*")) if p.is_file() and p not in unlisted)


def commit_directory(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest: `facts` plus name, size and digest of every file. From here on the directory counts."""
    sync_tree(directory)
    files = {
        str(p.relative_to(directory)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in list_files(directory)
    }
    write_json(directory / MANIFEST, {**facts, "files": files})


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


def clear_directory(directory: Path) -> None:
    """Remove what an interrupted writer left in `directory`, which its caller holds the lock of."""
    for path in directory.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_leftovers(directory: Path) -> None:
    """Remove the scratch files and directories of killed writers; nobody else may be writing in `directory`."""
    for path in directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(path: Path, *, busy: str | None = None, seconds: float = 0) -> Iterator[None]:
    """Alone in the body among the processes that share the file system; a process that dies lets go.

    Waits for its turn; with words in `busy` at most so long, then it raises StorageError with them.
    """
    make_directory(path.parent)
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
    """A scratch directory beside `final` that becomes `final` if the body succeeds and disappears if it does not."""
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    make_directory(final.parent)
    scratch.mkdir()
    try:
        yield scratch
        sync_tree(scratch)
        scratch.rename(final)
        sync_directory(final.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
