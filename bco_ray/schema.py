"""The rows that travel between stages: one canonical feedback record, and the Arrow schema of each artefact on disk.

Every stage that writes Parquet writes one of these schemas, explicitly, so that two blocks can never disagree.
JSON text is used where a value is free-form (messages with tool calls, metadata); each schema names itself in its
Arrow metadata under `bco_ray`, which is how a reader tells our own segments from a user's Parquet file.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Message(BaseModel):
    """One chat message in OpenAI's shape; extra keys (tool_calls, name, ...) are kept and handed to the template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1)
    content: str | list[dict[str, Any]] | None = None


def _unix_time(value: Any) -> Any:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


UnixTime = Annotated[float, BeforeValidator(_unix_time)]
"""Unix seconds; ISO 8601 text is accepted on input."""


class Record(BaseModel):
    """One vote on one answer. `prompt` is the conversation before the answer, `completion` the rated message(s).

    `label` True is thumbs-up. Times are unix seconds. `user` is whatever the log held (hashed by importers).
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    prompt: list[Message] = Field(min_length=1)
    completion: list[Message] = Field(min_length=1)
    label: bool
    label_raw: str | None = None
    source: str | None = None
    model: str | None = None
    user: str | None = None
    conversation_id: str | None = None
    created_at: UnixTime | None = None
    updated_at: UnixTime | None = None
    comment: str | None = None
    tags: list[str] = Field(default_factory=list)
    correction: str | None = None
    weight: float = Field(default=1.0, ge=0.0, le=1e6, allow_inf_nan=False)
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


def _named(name: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"bco_ray": name})


RECORDS = _named(
    "records/1",
    [
        ("id", pa.string()),
        ("prompt", pa.large_string()),  # JSON list of messages
        ("completion", pa.large_string()),  # JSON list of messages
        ("label", pa.bool_()),
        ("label_raw", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("user", pa.string()),
        ("conversation_id", pa.string()),
        ("created_at", pa.float64()),
        ("updated_at", pa.float64()),
        ("comment", pa.large_string()),
        ("tags", pa.list_(pa.string())),
        ("correction", pa.large_string()),
        ("weight", pa.float32()),
        ("tools", pa.large_string()),  # JSON or null
        ("metadata", pa.large_string()),  # JSON object
    ],
)
"""Canonical feedback log: one row per vote."""

LINES = _named("lines/1", [("file", pa.string()), ("position", pa.int64()), ("raw", pa.large_binary())])
"""Raw rows as read. `position` is the byte offset of a line in a plain file, else the row number."""

QUARANTINE = _named(
    "quarantine/1",
    [("file", pa.string()), ("position", pa.int64()), ("reason", pa.string()), ("detail", pa.string()),
     ("raw", pa.large_binary())],
)  # fmt: skip
"""Rows that were refused, with the reason; `read = kept + sum of reasons` always."""

_SCORED_FIELDS = [
    ("file", pa.string()),
    ("position", pa.int64()),
    ("id", pa.string()),
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

REFERENCE = _named(
    "reference/1", [*_SCORED_FIELDS, ("reference_logp", pa.float32()), ("embedding", pa.list_(pa.float32()))]
)
"""After the reference pass: log-probability of the completion and an embedding of the prompt."""

SCORED = _named("scored/1", [*_SCORED_FIELDS, ("reference_logp", pa.float32())])
"""What the trainer reads; `weight` now includes the density ratio."""

_JSON_COLUMNS = ("prompt", "completion", "tools", "metadata")


def schema_name(schema: pa.Schema) -> str | None:
    """`records/1`, `scored/1`, ... for a schema of ours, None for anybody else's."""
    name = (schema.metadata or {}).get(b"bco_ray")
    return name.decode() if name else None


def record_to_row(record: Record) -> dict[str, Any]:
    """A record as a dict that fits `RECORDS`."""
    row = record.model_dump(mode="json")
    for column in _JSON_COLUMNS:
        if row[column] is not None:
            row[column] = json.dumps(row[column], ensure_ascii=False)
    return row


def row_to_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `record_to_row`, not yet validated: a row of `RECORDS` with its JSON columns decoded."""
    decoded = dict(row)
    for column in _JSON_COLUMNS:
        if decoded.get(column) is not None:
            decoded[column] = json.loads(decoded[column])
    return decoded
