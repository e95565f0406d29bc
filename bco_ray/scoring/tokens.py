"""From settled records to token ids, each row's split, and the content keys that the reference pass is cached by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from bco_ray.errors import Refused
from bco_ray.models.loading import base_of
from bco_ray.schema import TOKENS, Message, Record, row_to_fields
from bco_ray.storage.local_copies import local_copy
from bco_ray.text import Encoded, Tokenizer, content_text, encode, end_of_turn_ids, load_tokenizer

ROWS_AT_A_TIME = 256
KEY_BYTES = 16

KEYED = pa.schema(
    [*TOKENS, ("row_key", pa.binary(KEY_BYTES)), ("prompt_key", pa.binary(KEY_BYTES)), ("text", pa.large_string())],
    metadata={"bco_ray": "keyed/1"},
)
"""TOKENS on their way to the reference pass. `text`: what an embedding model reads (null where none is asked)."""

Row = dict[str, Any]


def split_of(hash_value: int, validation: float) -> str:
    """`validation` for that share of the prompts (by their hash), else `train`."""
    return "validation" if (hash_value + 2**63) / 2**64 < validation else "train"


def row_key(ids_T: np.ndarray, mask_T: np.ndarray) -> bytes:
    """Equal exactly for equal tokens of which the same are rated: what a log-probability depends on."""
    content = ids_T.astype("<i4").tobytes() + mask_T.astype(np.bool_).tobytes()
    return hashlib.sha256(content).digest()[:KEY_BYTES]


def prompt_key(ids_T: np.ndarray, mask_T: np.ndarray) -> bytes:
    """Of the tokens before the first rated one: what the model's own embedding depends on."""
    start = int(mask_T.argmax())
    return hashlib.sha256(ids_T[:start].astype("<i4").tobytes()).digest()[:KEY_BYTES]


def text_key(text: str) -> bytes:
    """Of what an embedding model reads; tokens would mean something else under another base model's tokenizer."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


@dataclass(frozen=True)
class Tokenizing:
    """SETTLED rows to KEYED ones, with the tokenizer in `model_directory`."""

    model_directory: str
    max_length: int
    validation: float
    with_text: bool

    def __call__(self, records: pa.Table) -> tuple[pa.Table, list[Row]]:
        """(tokens, refused rows that fit schema.QUARANTINE); together as many rows as came in, in their order."""
        kept = [pa.Table.from_pylist([], schema=KEYED)]
        refused: list[Row] = []
        for batch in records.to_batches(max_chunksize=ROWS_AT_A_TIME):
            rows: list[Row] = []
            for row in batch.to_pylist():
                self._add(row, rows, refused)
            kept.append(pa.Table.from_pylist(rows, schema=KEYED))
        return pa.concat_tables(kept), refused

    def _add(self, row: Row, rows: list[Row], refused: list[Row]) -> None:
        place = {name: row.pop(name) for name in ("file", "position", "entry")}
        hashed = row.pop("prompt_hash")
        record = Record.model_validate(row_to_fields(row))
        try:
            rows.append(place | self._keyed(record, hashed))
        except Refused as verdict:
            place.pop("entry")
            raw = record.model_dump_json().encode("utf-8", "surrogatepass")
            refused.append(place | {"reason": verdict.reason, "detail": verdict.detail, "raw": raw})

    def _keyed(self, record: Record, hashed: int) -> Row:
        encoded = self._encode(record)
        ids_T, mask_T = np.array(encoded.input_ids, np.int32), np.array(encoded.completion_mask)
        text = user_text(record.prompt) if self.with_text else None
        return {
            "id": record.id,
            "user": record.user,
            "source": record.source,
            "split": split_of(hashed, self.validation),
            "prompt_hash": hashed,
            "label": record.label,
            "weight": record.weight,
            "n_tokens": len(ids_T),
            "input_ids": ids_T,
            "completion_mask": mask_T,
            "row_key": row_key(ids_T, mask_T),
            "prompt_key": prompt_key(ids_T, mask_T) if text is None else text_key(text),
            "text": text,
        }

    def _encode(self, record: Record) -> Encoded:
        if record.metadata.get("endpoint") == "text" and "choice_index" in record.metadata:
            raise Refused("raw_prompt", "an answer to /v1/completions: its prompt never went through the chat template")
        tokenizer, ends = _tokenizer(self.model_directory)
        return encode(
            tokenizer,
            record.prompt,
            record.completion,
            tools=record.tools,
            ends=ends,
            finished=record.metadata.get("ended", record.metadata.get("finish_reason") != "length"),
            max_length=self.max_length,
        )


def user_text(prompt: list[Message]) -> str:
    """What the user wrote in all turns; everything there is if no message is the user's."""
    texts = [content_text(m) for m in prompt if m.role == "user"] or [content_text(m) for m in prompt]
    return "\n".join(texts)


@lru_cache(maxsize=4)
def _tokenizer(directory: str) -> tuple[Tokenizer, frozenset[int]]:
    """With the ids that end a turn. Once per worker process, not once per part."""
    tokenizer = load_tokenizer(local_copy(directory, weights=False))
    return tokenizer, end_of_turn_ids(tokenizer, local_copy(base_of(directory), weights=False))
