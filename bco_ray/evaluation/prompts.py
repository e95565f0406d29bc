"""Held-out prompts to answer anew, found in scored shards and read from the records they were made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from bco_ray.schema import Message
from bco_ray.storage import parquet
from bco_ray.storage.scored import ScoredManifest
from bco_ray.text import content_text


@dataclass(frozen=True)
class HeldOutPrompt:
    """`messages` in OpenAI's shape. `votes` and `users`: whose it was, so that it can be forgotten with them."""

    messages: list[dict[str, Any]]
    votes: list[str]
    users: list[str]


def held_out_prompts(
    scored: Path, manifest: ScoredManifest, records: Path, *, count: int, seed: int
) -> list[HeldOutPrompt]:
    """Up to `count` different prompts of the validation split, the same ones for the same seed.

    Without those that come with tools, which a plain answer would ignore. Reads no more shards than it takes.
    """
    shards = [shard.file for shard in manifest.shards if shard.validation_chosen + shard.validation_rejected]
    found: list[HeldOutPrompt] = []
    for name in sorted(shards, key=lambda file: _place(seed, file)):
        if len(found) >= count:
            break
        inside = _voters(scored / name)
        texts = _texts(records / name, set(inside))
        for hashed in sorted(texts, key=lambda value: _place(seed, value))[: count - len(found)]:
            found.append(HeldOutPrompt(json.loads(texts[hashed]), *inside[hashed]))
    return found


def as_text(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as a judge or a reader gets it: the words alone where there is just one message."""
    parts = [Message.model_validate(message) for message in messages]
    if len(parts) == 1:
        return content_text(parts[0])
    return "\n\n".join(f"{part.role}: {content_text(part)}" for part in parts)


def _voters(shard: Path) -> dict[int, tuple[list[str], list[str]]]:
    """(votes, users) of each validation prompt; an erased row has no id and no weight."""
    table = parquet.read_table(shard, columns=["split", "weight", "prompt_hash", "id", "user"])
    kept = table.filter(pc.and_(pc.equal(table["split"], "validation"), pc.greater(table["weight"], 0)))
    found: dict[int, tuple[list[str], list[str]]] = {}
    for row in kept.to_pylist():
        votes, users = found.setdefault(row["prompt_hash"], ([], []))
        votes += [row["id"]] if row["id"] is not None else []
        users += [row["user"]] if row["user"] is not None and row["user"] not in users else []
    return found


def _texts(part: Path, wanted: set[int]) -> dict[int, str]:
    return dict(_plain_prompts(part, wanted)) if part.is_file() else {}


def _plain_prompts(part: Path, wanted: set[int]) -> Iterator[tuple[int, str]]:
    table = parquet.read_table(part, columns=["prompt_hash", "prompt", "tools"])
    for hashed, prompt, tools in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        if hashed in wanted and tools is None and prompt:
            yield hashed, prompt


def _place(seed: int, what: object) -> str:
    return hashlib.sha256(f"{seed} {what}".encode()).hexdigest()
