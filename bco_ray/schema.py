"""The rows that travel between stages: one canonical feedback record, and the Arrow schema of each artefact on disk.

Every stage that writes Parquet writes one of these schemas, explicitly, so that two blocks can never disagree.
JSON text is used where a value is free-form (messages with tool calls, metadata); each schema names itself in its
Arrow metadata under `bco_ray`, which is how a reader tells our own segments from a user's Parquet file.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Message(BaseModel):
    """One chat message in OpenAI's shape; extra keys (tool_calls, name, ...) are kept and handed to the template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1)
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


def _unix_time(value: Any) -> Any:
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            when = datetime.fromisoformat(value)
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return next((value / unit for unit in (1e9, 1e6, 1e3) if abs(value) >= 1e8 * unit), value)


_NUMBER = re.compile(r"-?\d{9,}(\.\d*)?")
"""Seconds or finer since 1970; fewer digits are a date (`20260102`)."""

UnixTime = Annotated[float, BeforeValidator(_unix_time), Field(allow_inf_nan=False)]
"""Unix seconds. On input also milli-, micro- or nanoseconds, and ISO 8601 text (UTC where it names no zone)."""


class Record(BaseModel):
    """One vote on one answer. `prompt` is the conversation before the answer, `completion` the rated message(s).

    `label` True is thumbs-up, None a vote that was withdrawn or is neutral (it still replaces an earlier one, and is
    then dropped). Times are unix seconds. `response_id` names the answer, `siblings` are other answers to the same
    prompt, `correction` what the answer should have been. `user` is hashed when a log is read into records.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    prompt: list[Message] = Field(min_length=1)
    completion: list[Message] = Field(min_length=1)
    label: bool | None
    label_raw: str | None = None
    response_id: str | None = None
    source: str | None = None
    model: str | None = None
    user: str | None = None
    conversation_id: str | None = None
    created_at: UnixTime | None = None
    updated_at: UnixTime | None = None
    comment: str | None = None
    tags: list[str] = Field(default_factory=list)
    correction: str | None = None
    siblings: list[str] = Field(default_factory=list)
    weight: float = Field(default=1.0, ge=0.0, le=1e6, allow_inf_nan=False)
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


_CHAT_COLUMNS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})


def is_unlabelled_chat(row: Any) -> bool:
    """Whether a raw row is a conversation as OpenAI's supervised method takes them, without what might be a vote."""
    return isinstance(row, dict) and isinstance(row.get("messages"), list) and row.keys() <= _CHAT_COLUMNS


def _named(name: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"bco_ray": name})


_RECORD_FIELDS = [
    ("id", pa.string()),
    ("prompt", pa.large_string()),  # JSON list of messages
    ("completion", pa.large_string()),  # JSON list of messages
    ("label", pa.bool_()),
    ("label_raw", pa.string()),
    ("response_id", pa.string()),
    ("source", pa.string()),
    ("model", pa.string()),
    ("user", pa.string()),
    ("conversation_id", pa.string()),
    ("created_at", pa.float64()),
    ("updated_at", pa.float64()),
    ("comment", pa.large_string()),
    ("tags", pa.list_(pa.string())),
    ("correction", pa.large_string()),
    ("siblings", pa.list_(pa.large_string())),
    ("weight", pa.float32()),
    ("tools", pa.large_string()),  # JSON or null
    ("metadata", pa.large_string()),  # JSON object
]

RECORDS = _named("records/2", _RECORD_FIELDS)
"""Canonical feedback log: one row per vote."""

_PLACE_FIELDS = [("file", pa.string()), ("position", pa.int64()), ("entry", pa.int32())]
"""Where a row was read: `position` is the byte offset of a line in a plain file, else the row number; `entry` counts
the votes that came out of that one row (a whole conversation may hold several)."""

PARSED = _named(
    "parsed/1",
    [*_PLACE_FIELDS, ("kind", pa.string()), ("bucket", pa.int32()), ("prompt_hash", pa.int64()),
     ("half", pa.large_string()), *_RECORD_FIELDS],
)  # fmt: skip
"""Between reading and settling. `kind` is `vote`, or `response` / `rating`: the halves of a vote, to be joined on
`response_id`, whose other fields are JSON in `half`. `bucket` is where it meets its kin: the same for all votes on a
prompt, and for both halves of a vote."""

SETTLED = _named("settled/1", [*_PLACE_FIELDS, ("prompt_hash", pa.int64()), *_RECORD_FIELDS])
"""`records/<digest>/part-*.parquet`: the votes that count, sorted by prompt, each with the place it came from."""

LINES = _named(
    "lines/2",
    [("file", pa.string()), ("position", pa.int64()), ("raw", pa.large_binary()), ("problem", pa.string())],
)
"""Raw rows as read: `raw` is the row's JSON. `problem` (else null) says why this row, or the rest of this file, could
not be read; it is `reason: detail`."""

QUARANTINE = _named(
    "quarantine/1",
    [("file", pa.string()), ("position", pa.int64()), ("reason", pa.string()), ("detail", pa.string()),
     ("raw", pa.large_binary())],
)  # fmt: skip
"""Rows that were refused, with the reason; `read = kept + sum of reasons` always."""

_SCORED_FIELDS = [
    *_PLACE_FIELDS,
    ("id", pa.string()),
    ("user", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),  # "train" or "validation", by prompt
    ("prompt_hash", pa.int64()),
    ("label", pa.bool_()),
    ("weight", pa.float32()),
    ("n_tokens", pa.int32()),
    ("input_ids", pa.large_list(pa.int32())),
    ("completion_mask", pa.large_list(pa.bool_())),
]

TOKENS = _named("tokens/1", _SCORED_FIELDS)
"""Rows as token ids; `weight` is the log's own row weight."""

REFERENCE = _named("reference/2", [*_SCORED_FIELDS, ("reference_logp", pa.float32())])
"""After the reference pass: log-probability of the completion."""

PROMPTS = _named(
    "prompts/2",
    [("prompt_hash", pa.int64()), ("split", pa.string()), ("chosen", pa.int32()), ("rejected", pa.int32()),
     ("embedding", pa.binary())],  # little-endian float32, all rows of one width
)  # fmt: skip
"""Beside each reference shard: its distinct prompts, sorted by hash, each once; how many votes of each kind it has.
`embedding` is stored as it lies in memory, uncompressed: it is read a dozen times and zstd saves less than a tenth."""

SCORED = _named("scored/1", [*_SCORED_FIELDS, ("reference_logp", pa.float32())])
"""What the trainer reads; `weight` now includes the density ratio."""

_JSON_COLUMNS = ("prompt", "completion", "tools", "metadata")


def is_records(schema: pa.Schema) -> bool:
    """Whether a Parquet file holds our canonical log (any version of it)."""
    return (schema_name(schema) or "").startswith("records/")


def schema_name(schema: pa.Schema) -> str | None:
    """`records/1`, `scored/1`, ... for a schema of ours, None for anybody else's."""
    name = (schema.metadata or {}).get(b"bco_ray")
    return name.decode() if name else None


def record_to_row(record: Record) -> dict[str, Any]:
    """A record as a dict that fits `RECORDS`. Equal conversations become equal text: keys sorted, nulls left out."""
    row = record.model_dump(mode="json", exclude={"prompt", "completion"})
    for column in ("prompt", "completion"):
        row[column] = [message.model_dump(mode="json", exclude_none=True) for message in getattr(record, column)]
    for column in _JSON_COLUMNS:
        if row[column] is not None:
            row[column] = json.dumps(row[column], ensure_ascii=False, sort_keys=True)
    return row


def row_to_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `record_to_row`, not yet validated: a row of `RECORDS` with its JSON columns decoded."""
    decoded = dict(row)
    for column in _JSON_COLUMNS:
        if decoded.get(column) is not None:
            decoded[column] = json.loads(decoded[column])
    return decoded
