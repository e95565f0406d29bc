"""What a job is: its row, its events, and what is asked for when one is created."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bco_ray.control.states import Status
from bco_ray.errors import BcoError

Json = dict[str, Any]


class IllegalMoveError(BcoError):
    """The job is not in a state from which it can do that."""


class TooManyJobsError(BcoError):
    """The project has as many jobs as it may."""


class ForeignModelError(BcoError):
    """The name under which its model would be registered is another project's."""


@dataclass(frozen=True)
class Order:
    """What is asked for: the request as it came, and the spec it means. `details`: those a job begins with."""

    id: str
    project: str
    created_by: str
    request: Json
    spec: Json
    metadata: dict[str, str]
    body_hash: str
    priority: int = 0
    idempotency_key: str | None = None
    details: Json = field(default_factory=dict)


@dataclass(frozen=True)
class WaitingRoom:
    """How many jobs of one project, and of one key, may wait at once; None: any number."""

    of_project: int | None = None
    of_key: int | None = None


@dataclass(frozen=True)
class Job:
    """A row of `jobs` (see there). Times are unix seconds."""

    seq: int
    id: str
    project: str
    created_by: str
    created_at: float
    status: Status
    request: Json
    spec: Json
    metadata: dict[str, str]
    priority: int
    idempotency_key: str | None
    body_hash: str
    attempt: int
    submission: str | None
    holds_cluster: bool
    seen_at: float | None
    again_at: float | None
    details: Json
    outcome: Json | None
    error: Json | None
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True)
class JobEvent:
    """A row of `job_events`."""

    seq: int
    id: str
    job_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: Json


@dataclass(frozen=True)
class News:
    """An event to be."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: Mapping[str, Any] | None = None


def new_id(kind: str) -> str:
    """Not to be guessed: `ftjob-` and 24 hex digits."""
    return f"{kind}-{secrets.token_hex(12)}"


def body_hash(request: Mapping[str, Any]) -> str:
    """Of a request, for its idempotency key; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
