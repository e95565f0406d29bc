"""What the feedback log holds, as values: answers and votes."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from bco_ray.errors import StorageError

ABORTED = "abort"
"""Finish reason of an answer that ended halfway: somebody may have seen and judged it, nobody trains on it."""


class NotFoundError(StorageError):
    """No such answer, choice or vote."""


class ExpiredError(StorageError):
    """The answer is older than what the server remembers."""


@dataclass(frozen=True)
class Choice:
    """One sampled answer. `token_ids` are all sampled ids, the end token included if it came (`ended`)."""

    text: str
    token_ids: list[int]
    finish_reason: str
    ended: bool = False


@dataclass(frozen=True)
class Completion:
    """One answered request. `model` is the exact version (`name/3`); `endpoint` is `chat` or `text`.

    `canary_percent`: the share of the canary that decided which version answers; None: none did, it was named.
    """

    id: str
    created_at: float
    model: str
    system_fingerprint: str
    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    choices: list[Choice]
    sampling: dict[str, Any]
    user: str | None = None
    tools: list[dict[str, Any]] | None = None
    endpoint: str = "chat"
    canary_percent: float | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """How many were read and generated, also of an emptied one."""
        if left_out(self.sampling):
            return self.sampling["prompt_tokens"], self.sampling["completion_tokens"]
        return len(self.prompt_ids), sum(len(choice.token_ids) for choice in self.choices)

    def emptied(self, why: str) -> Completion:
        """Without everything that was said: what is left can be voted on, and counted, and never trained on.

        `why` (`not_stored`, `expired`) and the token counts take the place of the sampling parameters, some of which
        (stop strings) are text too.
        """
        prompt_tokens, completion_tokens = self.tokens
        return replace(
            self,
            messages=[],
            tools=None,
            prompt_ids=[],
            choices=[replace(choice, text="", token_ids=[]) for choice in self.choices],
            sampling={"left_out": why, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        )


def left_out(sampling: dict[str, Any]) -> str | None:
    """Why nothing is left of a completion with this `sampling` (see `Completion.emptied`), or None."""
    why = sampling.get("left_out")
    return None if why is None else str(why)


class Vote(BaseModel):
    """What a voter says: label True is thumbs-up, False thumbs-down, None takes an earlier vote back."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    response_id: str = Field(min_length=1, max_length=128)
    label: bool | None
    choice_index: int = Field(default=0, ge=0, le=1023)
    comment: str | None = Field(default=None, max_length=4096)
    tags: list[str] = Field(default_factory=list, max_length=32)
    correction: str | None = Field(default=None, max_length=1 << 16)
    user: str | None = Field(default=None, max_length=256)
    source: str | None = Field(default=None, max_length=64)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _storable(self) -> Vote:
        require_storable(self)
        return self

    @property
    def body_hash(self) -> str:
        """Equal for equal votes; what tells a replayed request from a reused key."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class VoteEvent:
    """A stored vote. `effective`: no later event of the same (response, choice, user); `model` gave the answer."""

    seq: int
    id: str
    created_at: float
    model: str
    effective: bool
    vote: Vote


Ballot = tuple[Vote, str | None]
"""A vote, and the idempotency key it came with."""

Added = tuple[VoteEvent, bool]
"""The stored event, and whether this call stored it (False: a replay)."""


def require_storable(value: BaseModel) -> None:
    """Raises an error that names the field (`param` of its context) for what JSON, UTF-8, Parquet or a database cannot
    hold: NaN, infinities, half surrogate pairs, U+0000.

    Checked at the door, because one such row in the log would make every later export fail.
    """
    fields = value.model_dump()
    if problem := _why_not_storable(fields):
        found = ((name, why) for name, field in fields.items() if (why := _why_not_storable(field)))
        param, problem = next(found, ("", problem))
        raise PydanticCustomError("not_storable", "{problem}", {"param": param, "problem": problem})


def is_storable(value: JsonValue) -> bool:
    """See `require_storable`."""
    return _why_not_storable(value) is None


def storable(value: JsonValue) -> JsonValue:
    """What was said elsewhere and cannot be refused, so that it can be stored: bad characters as escapes."""
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, list):
        return [storable(one) for one in value]
    return {_escaped(k): storable(v) for k, v in value.items()} if isinstance(value, dict) else value


def _escaped(text: str) -> str:
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON; after an odd number of backslashes it is a text that says so."""


def _why_not_storable(value: Any) -> str | None:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return "text contains half of a surrogate pair, which is no character"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return str(error)
    return "text contains U+0000, which cannot be stored" if "\\u0000" in text and _NUL.search(text) else None


def new_completion_id(prefix: str = "chatcmpl") -> str:
    """Unguessable: whoever knows it may vote on the answer."""
    return f"{prefix}-{secrets.token_hex(16)}"
