"""Pseudonyms of voters, and the secret they are made with: one per storage directory, made when first needed."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from bco_ray.storage.secret_files import kept_secret

SALT_FILE = "user-salt"
SALT_VARIABLE = "BCO_USER_SALT"

_HASHED = re.compile(r"u-[0-9a-f]{24}")


def user_salt(storage: Path) -> bytes:
    """`$BCO_USER_SALT`, else the salt kept in `storage` (mode 0600). Whoever loses it can no longer tell who is who.

    Raises StorageError for one that is too short to keep names from being guessed.
    """
    return kept_secret(storage / SALT_FILE, SALT_VARIABLE)


def hash_user(user: str, salt: bytes) -> str:
    """A person's stable pseudonym, `u-` and 24 hex digits; one that is a pseudonym already stays as it is."""
    if _HASHED.fullmatch(user):
        return user
    return "u-" + hmac.new(salt, user.encode(), hashlib.sha256).hexdigest()[:24]
