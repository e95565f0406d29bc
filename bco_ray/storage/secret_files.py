"""Secrets of a storage directory: a file each (mode 0600), made when first needed, or an environment variable."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from bco_ray.errors import StorageError
from bco_ray.storage import disk, files
from bco_ray.storage.objects import ObjectPath

LEAST_BYTES = 16


def kept_secret(path: Path, variable: str) -> bytes:
    """`$variable`, else what is kept in `path`, made now if it is not there yet: once, however many ask at once.

    Raises StorageError for one that is too short to be safe.
    """
    given = os.environ.get(variable)
    secret = given.encode() if given else _kept(path)
    if len(secret) < LEAST_BYTES:
        where = f"${variable}" if given else str(path)
        raise StorageError(f"{where}: a secret needs at least {LEAST_BYTES} bytes, found {len(secret)}.")
    return secret


def _kept(path: Path) -> bytes:
    if not path.is_file():
        with files.locked(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _make(path)
    return path.read_bytes().strip()


def _make(path: Path) -> None:
    if isinstance(path, ObjectPath):  # as private as its bucket
        path.write_bytes(secrets.token_hex(32).encode())
        return
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # a killed maker's: a secret too
        leftover.unlink()
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123
        file.write(secrets.token_hex(32).encode())
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
    disk.sync_directory(path.parent)  # before anything is made with it
