"""What makes two votes the same vote, two answers the same answer, two prompts the same prompt.

All are hashes of content or of the log's own names, so that they do not depend on where and when a row was read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""A row of schema.PARSED or SETTLED."""


def prompt_hash(prompt: str) -> int:
    """A signed 64-bit hash of a prompt column, equal for equal conversations; nothing ever parts a prompt."""
    return _hash64(prompt)


def bucket_of(hash_value: int, bits: int) -> int:
    """Which of 2**bits buckets: the hash's top bits, so that one bucket splits into two when `bits` grows by 1."""
    return (hash_value + 2**63) >> (64 - bits)


def bucket_of_name(name: str, bits: int) -> int:
    """The bucket of a response id, where the halves of a vote meet."""
    return bucket_of(_hash64(name), bits)


def response_key(row: Row) -> str:
    """The answer a vote is about: its id and its prompt, else its text with its prompt in its conversation.

    The prompt is part of it because ids repeat (row numbers of several files do), and because votes meet by prompt.
    """
    if row["response_id"] is not None:
        return f"id:{row['prompt_hash']}:{row['response_id']}"
    return "text:" + _digest(row["conversation_id"], row["prompt"], row["completion"])


def vote_key(row: Row) -> str:
    """What is voted once: (user, answer id); else what the vote's own id says; else (user, text); else the content.

    Two votes with ids of their own are two votes, also on the same words: only an answer's id makes them one. And an
    id that several people share is the id of what they voted on.
    """
    if row["response_id"] is not None:
        return f"answer:{row['user']}:{response_key(row)}"
    if row["id"] != default_id(row["file"], row["position"], row["entry"]):
        return f"vote:{row['user']}:{row['prompt_hash']}:{row['id']}"
    if row["user"] is not None:
        return f"user:{row['user']}:{response_key(row)}"
    return "content:" + content_key(row)


def content_key(row: Row) -> str:
    """Equal for rows that say the same thing at the same time: copies, not votes of their own."""
    named = ("prompt", "completion", "label", "response_id", "user", "model", "created_at", "updated_at", "comment")
    return _digest(*(row[name] for name in named))


def default_id(file: str, position: int, entry: int) -> str:
    """The id of a vote whose log names none: where it stood. Files of one name in two places differ."""
    name = f"{file.rpartition('/')[2]}@{hashlib.sha256(file.encode()).hexdigest()[:6]}"
    return f"{name}:{position}" + (f":{entry}" if entry else "")


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], signed=True)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
