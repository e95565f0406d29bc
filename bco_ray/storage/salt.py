"""Pseudonyms of voters, and the secret they are made with: one per storage directory, made when first needed."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from bco_ray.errors import StorageError
from bco_ray.storage import files

SALT_FILE = "user-salt"
SALT_VARIABLE = "BCO_USER_SALT"
LEAST_BYTES = 16

_HASHED = re.compile(r"u-[0-9a-f]{24}")


def user_salt(storage: Path) -> bytes:
    """`$BCO_USER_SALT`, else the salt kept in `storage` (mode 0600). Whoever loses it can no longer tell who is who.

    Raises StorageError for one that is too short to keep names from being guessed.
    """
    given = os.environ.get(SALT_VARIABLE)
    salt = given.encode() if given else _kept(storage / SALT_FILE)
    if len(salt) < LEAST_BYTES:
        where = f"${SALT_VARIABLE}" if given else str(storage / SALT_FILE)
        raise StorageError(f"{where}: a salt needs at least {LEAST_BYTES} bytes, found {len(salt)}.")
    return salt


def hash_user(user: str, salt: bytes) -> str:
    """A person's stable pseudonym, `u-` and 24 hex digits; one that is a pseudonym already stays as it is."""
    if _HASHED.fullmatch(user):
        return user
    return "u-" + hmac.new(salt, user.encode(), hashlib.sha256).hexdigest()[:24]


def _kept(path: Path) -> bytes:
    if not path.is_file():
        with files.locked(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _make(path)
    return path.read_bytes().strip()


def _make(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # a killed maker's: a secret too
        leftover.unlink()
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123
        file.write(secrets.token_hex(32).encode())
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
    files.sync_directory(path.parent)  # before anything is written with it
