"""The stage that turns records into tokens and decides each row's split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.models.loading import base_of
from bco_ray.schema import TOKENS, Record, row_to_fields
from bco_ray.storage.quarantine import Quarantine
from bco_ray.text import Tokenizer, canonical_prompt, encode, end_of_turn_ids, load_tokenizer


def prompt_hash(record: Record) -> int:
    """A signed 64-bit hash that is equal for equal conversations; splits and folds never part a prompt."""
    text = canonical_prompt(record.prompt).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], signed=True)


def split_of(hash_value: int, validation: float) -> str:
    """`validation` for that share of the prompts (by their hash), else `train`."""
    return "validation" if (hash_value + 2**63) / 2**64 < validation else "train"


@dataclass(frozen=True)
class TokenizeStage:
    """Records to TOKENS with the tokenizer in `model_directory`; refused rows go to `quarantine`."""

    model_directory: str
    max_length: int
    validation: float
    quarantine: Path

    def __call__(self, records: pa.Table) -> Iterator[pa.Table]:
        """One block in (positioned RECORDS), one out (TOKENS)."""
        if not records.num_rows:
            return
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for row in records.to_pylist():
            where = {"file": row.pop("file"), "position": row.pop("position")}
            record = Record.model_validate(row_to_fields(row))
            try:
                kept.append(where | self._tokens(record))
            except Refused as verdict:
                raw = record.model_dump_json().encode("utf-8", "surrogatepass")
                refused.append(where | {"reason": verdict.reason, "detail": verdict.detail, "raw": raw})
        first = (records["file"][0].as_py(), records["position"][0].as_py())
        Quarantine(self.quarantine).write(first, records.num_rows, refused)
        yield pa.Table.from_pylist(kept, schema=TOKENS)

    def _tokens(self, record: Record) -> dict[str, Any]:
        if record.metadata.get("endpoint") == "text":
            raise Refused("raw_prompt", "an answer to /v1/completions: its prompt never went through the chat template")
        tokenizer, ends = _tokenizer(self.model_directory)
        encoded = encode(
            tokenizer,
            record.prompt,
            record.completion,
            tools=record.tools,
            ends=ends,
            finished=record.metadata.get("ended", record.metadata.get("finish_reason") != "length"),
            max_length=self.max_length,
        )
        hashed = prompt_hash(record)
        return {
            "id": record.id,
            "source": record.source,
            "split": split_of(hashed, self.validation),
            "prompt_hash": hashed,
            "label": record.label,
            "weight": record.weight,
            "n_tokens": len(encoded.input_ids),
            "input_ids": encoded.input_ids,
            "completion_mask": encoded.completion_mask,
        }


@lru_cache(maxsize=4)
def _tokenizer(directory: str) -> tuple[Tokenizer, frozenset[int]]:
    """With the ids that end a turn. Once per worker process, not once per block."""
    tokenizer = load_tokenizer(directory)
    return tokenizer, end_of_turn_ids(tokenizer, base_of(directory))
