"""API keys: who may do what. A key is shown once; kept is its HMAC, worth nothing without the server's pepper.

A key reads `sk-bco-<id>_<secret>`: it is looked up by its id and compared as a whole. The hash is a quick one: slow
ones are for passwords, the secret has 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from bco_ray.control.audit import record
from bco_ray.errors import SpecError
from bco_ray.storage.database import open_database, reading, writing
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_tables import api_keys
from bco_ray.storage.secret_files import kept_secret

if TYPE_CHECKING:
    from bco_ray.web.access import Action

PREFIX = "sk-bco-"
PEPPER = "BCO_KEYS_PEPPER"

ROLES: dict[str, tuple[Action, ...]] = {
    "infer": ("infer", "vote"),
    "read": ("read",),
    "submit": ("submit", "upload"),
    "admin": ("promote", "keys", "audit", "admin"),
}
"""The ladder, lowest first: what each role may, besides all that the ones before it may."""

_NEEDED = {action: rung for rung, actions in enumerate(ROLES.values()) for action in actions}

_KEY = re.compile(rf"{PREFIX}([a-z0-9]{{8}})_[A-Za-z0-9_-]{{43}}")
_ID = re.compile(rf"(?:{PREFIX})?([a-z0-9]{{8}})(?:_.*)?")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_NAME = 128


def may(role: str, action: Action) -> bool:
    """Whether a role's keys may; unknown roles may nothing, and nobody may what is unknown."""
    return role in ROLES and action in _NEEDED and list(ROLES).index(role) >= _NEEDED[action]


class Limits(BaseModel):
    """What a key may use; None: as much as there is. `gpu_hours_per_month`: of the jobs it asks for. `upload_bytes`: to
    which it may fill its project's uploads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1)
    running_jobs: int | None = Field(default=None, ge=1)
    queued_jobs: int | None = Field(default=None, ge=1)
    gpu_hours_per_month: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    upload_bytes: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key, without its secret. Times are unix seconds."""

    id: str
    project: str
    name: str
    role: str
    limits: Limits
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def shown(self) -> str:
        """As much of the key's text as may be seen."""
        return f"{PREFIX}{self.id}_..."

    @property
    def requests_per_minute(self) -> int | None:
        """None: unlimited."""
        return self.limits.requests_per_minute

    @property
    def queued_jobs(self) -> int | None:
        """None: unlimited."""
        return self.limits.queued_jobs

    def may(self, action: Action) -> bool:
        """Whether its role may."""
        return may(self.role, action)

    def works(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore:
    """Makes, finds and revokes keys; what is done is in the audit log in the same transaction. Safe for threads."""

    def __init__(self, engine: sa.Engine, pepper: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._pepper = pepper
        self._clock = clock
        self._nobodys = self._hash(secrets.token_urlsafe())

    @classmethod
    def open(cls, storage: Path, url: str | None = None) -> KeyStore:
        """The keys of a storage directory, or of the database `url` names.

        Servers that share a database need the same $BCO_KEYS_PEPPER, or the same file `keys-pepper`. Raises
        StorageError.
        """
        return cls(open_database(storage, url), kept_secret(storage / "keys-pepper", PEPPER))

    def create(
        self, project: str, name: str, role: str, *, limits: Limits, expires_at: float | None = None, actor: str
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which cannot be had again. Raises SpecError for what no key can have."""
        key = ApiKey(_new_id(), project, name, role, limits, self._clock(), expires_at)
        _require_sensible(key)
        text = f"{PREFIX}{key.id}_{secrets.token_urlsafe(32)}"
        row = _row(key)
        with writing(self._engine) as connection:
            connection.execute(sa.insert(api_keys).values(**row, secret_hash=self._hash(text)))
            facts = {name: row[name] for name in ("name", "role", "limits", "expires_at")}
            record(connection, project=project, actor=actor, action="key.create", target=key.id, **facts)
        return key, text

    def revoke(self, key_id: str, actor: str) -> ApiKey:
        """End a key for good; one that was revoked before stays as it is. Raises NotFoundError.

        Takes the id, or a key's whole text, whose secret half is then in no error.
        """
        key_id, now = _id_in(key_id), self._clock()
        with writing(self._engine) as connection:
            key = _one(connection, key_id, lock=True)
            if key.revoked_at is not None:
                return key
            connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now))
            record(connection, project=key.project, actor=actor, action="key.revoke", target=key_id, name=key.name)
        return replace(key, revoked_at=now)

    def find(self, presented: str) -> ApiKey | None:
        """The key with this text, if it works; None for anything else, and it takes as long for an unknown id."""
        read = _KEY.fullmatch(presented)
        if read is None:
            return None
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == read[1])).mappings().first()
        right = hmac.compare_digest(self._hash(presented), row["secret_hash"] if row else self._nobodys)
        if row is None or not right:
            return None
        key = _key(row)
        return key if key.works(self._clock()) else None

    def get(self, key_id: str) -> ApiKey:
        """By id, whether it still works or not. Raises NotFoundError."""
        with reading(self._engine) as connection:
            return _one(connection, _id_in(key_id))

    def limits(self, key_id: str) -> Limits:
        """Of a key, as they are now; none if it is no key (a server without any)."""
        with reading(self._engine) as connection:
            limits = connection.execute(sa.select(api_keys.c.limits).where(api_keys.c.id == key_id)).scalar()
        return Limits() if limits is None else Limits.model_validate(limits)

    def any(self) -> bool:
        """Whether there ever was a key: once there was, revoking the last one must not open the server to all."""
        with reading(self._engine) as connection:
            return connection.execute(sa.select(api_keys.c.id).limit(1)).first() is not None

    def list(self, project: str | None = None) -> Sequence[ApiKey]:
        """All keys, or a project's, in the order they were made; also those that no longer work."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        if project is not None:
            query = query.where(api_keys.c.project == project)
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def _hash(self, text: str) -> str:
        return hmac.new(self._pepper, text.encode(), hashlib.sha256).hexdigest()


def _one(connection: sa.Connection, key_id: str, *, lock: bool = False) -> ApiKey:
    query = sa.select(api_keys).where(api_keys.c.id == key_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFoundError(f"{key_id}: no such key; `bco keys list` shows those there are.")
    return _key(row)


def _row(key: ApiKey) -> dict[str, Any]:
    return {**vars(key), "limits": key.limits.model_dump()}


def _key(row: sa.RowMapping) -> ApiKey:
    known = {name: row[name] for name in row if name not in {"secret_hash", "limits"}}
    return ApiKey(**known, limits=Limits.model_validate(row["limits"]))


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _id_in(text: str) -> str:
    """From a key's id, its beginning, or its whole text. Raises NotFoundError, which does not repeat the text."""
    read = _ID.fullmatch(text)
    if read is None:
        raise NotFoundError("That is no key's id (8 small letters and digits); `bco keys list` shows those there are.")
    return read[1]


def _require_sensible(key: ApiKey) -> None:
    if key.role not in ROLES:
        raise SpecError(f"role: {key.role}: no such role; there are {', '.join(ROLES)}.")
    if not _PROJECT.fullmatch(key.project):
        raise SpecError(f"project: {key.project}: use 1 to 64 letters, digits, dots, dashes and underscores.")
    if not (key.name.strip() and key.name.isprintable() and len(key.name) <= _LONGEST_NAME):
        raise SpecError(f"name: say in 1 to {_LONGEST_NAME} printable characters what the key is for.")
    if not key.works(key.created_at):
        raise SpecError("expires_at: lies in the past; name a time to come.")
