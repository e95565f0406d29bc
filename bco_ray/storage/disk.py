"""The local disk: writes and renames that are still there after a power cut."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


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
