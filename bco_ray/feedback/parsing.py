"""One raw row of a log to canonical records, or to refusals with a reason. Pure; no truthiness, no guessing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bco_ray.errors import Refused
from bco_ray.feedback.formats.entry import Entry, Format
from bco_ray.schema import Message, Record, record_to_row

LabelMap = Mapping[str, bool | None]
"""Spelling of a label -> thumbs-up, thumbs-down, or None for neutral."""

_PASSED = frozenset(Record.model_fields) - {"id", "prompt", "completion", "label", "label_raw"}
_NAMES = ("response_id", "conversation_id", "source", "model", "user")
_BOOLEANS: LabelMap = {"true": True, "false": False}


def read_entries(raw: bytes, format_: Format) -> Iterator[Entry | Refused]:
    """What a row of an export says; a row that cannot be used at all is one Refused."""
    try:
        yield from format_.read(_object(raw))
    except Refused as verdict:
        yield verdict
    except RecursionError:
        yield Refused("invalid_json", "nested too deeply")


def resolve_label(fields: Mapping[str, Any], label_map: LabelMap) -> dict[str, Any]:
    """`label` and `label_raw` of an entry. Raises Refused for a label that is missing or not in the map.

    A label is looked up as a person would type it (`1`, `good`). JSON true and false mean themselves unless the map
    says otherwise: so the server's own log is readable under any map. JSON null is neutral.
    """
    if "label" not in fields:
        raise Refused("missing_label", "the row has no label")
    if fields["label"] is None:
        return {"label": None, "label_raw": None}
    label_raw = _spelling(fields["label"])
    label_map = {**_BOOLEANS, **label_map} if isinstance(fields["label"], bool) else label_map
    if label_raw not in label_map:
        raise Refused("unknown_label", f"label {label_raw!r} is not in data.label_map ({', '.join(label_map)})")
    return {"label": label_map[label_raw], "label_raw": label_raw}


def to_row(fields: Mapping[str, Any], *, default_id: str) -> dict[str, Any]:
    """A complete vote, its label resolved, as a row of schema.RECORDS. Raises Refused.

    `prompt` and `completion` may be text or a list of messages.
    """
    values = {key: value for key, value in fields.items() if key in _PASSED and value is not None}
    values |= {key: name_of(fields.get(key), key) for key in _NAMES}
    values |= {
        "id": name_of(fields.get("id"), "id") or default_id,
        "prompt": _messages(fields, "prompt", role="user"),
        "completion": _messages(fields, "completion", role="assistant"),
        "label": fields["label"],
        "label_raw": fields["label_raw"],
    }
    try:
        record = Record.model_validate(values)
        row = record_to_row(record)
    except ValidationError as error:
        raise Refused("invalid_field", _where(error)) from None
    except (ValueError, RecursionError) as error:  # nested deeper than can be written down again
        raise Refused("invalid_field", str(error)) from None
    _refuse_empty(record)
    refuse_half_characters(row.values())
    return row


def name_of(value: Any, what: str) -> str | None:
    """An id or a name as text: numbers as they are written (12.0 is 12), nothing for empty text. Raises Refused."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "":
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise Refused("invalid_field", f"{what}: {type(value).__name__} is no name")


def refuse_half_characters(values: Iterable[Any]) -> None:
    """Raises Refused for text (or a list of texts) that holds half of a surrogate pair: no file could hold it."""
    try:
        for value in values:
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    text.encode()
    except UnicodeEncodeError:
        raise Refused("invalid_text", "a string holds half of a surrogate pair, which is no text") from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused("invalid_utf8", f"{error}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_json", str(error)) from None
    if b"\\ud" in raw.lower() and _has_lone_surrogate(value):
        raise Refused("invalid_text", "a string holds half of a surrogate pair, which is no text")
    if not isinstance(value, dict):
        raise Refused("not_an_object", f"a row is a JSON object, found {type(value).__name__}")
    return value


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def _spelling(label: Any) -> str:
    """How the label is written. JSON `true` and `1` become these texts; 1.0 is 1, as data frames export it."""
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    if isinstance(label, str | int | float):
        return str(label)
    raise Refused("unknown_label", f"label is {type(label).__name__}, not true/false, a number or text")


def _messages(fields: Mapping[str, Any], name: str, *, role: str) -> list[Message]:
    value = fields.get(name)
    if value is None:
        raise Refused(f"missing_{name}", f"the row has no {name}")
    if value == []:
        raise Refused(f"empty_{name}", f"{name} is an empty list")
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if not isinstance(value, list):
        raise Refused(f"invalid_{name}", f"{name} is {type(value).__name__}, not text or a list of messages")
    try:
        return [Message.model_validate(item) for item in value]
    except ValidationError as error:
        raise Refused(f"invalid_{name}", f"{name}: {_where(error)}") from None


def _refuse_empty(record: Record) -> None:
    if not any(_says_something(message) for message in record.completion):
        raise Refused("empty_completion", "the completion has no text")
    if not any(_says_something(message) for message in record.prompt):
        raise Refused("empty_prompt", "the prompt has no text")


def _says_something(message: Message) -> bool:
    if isinstance(message.content, str) and message.content.strip():
        return True
    return bool(message.model_extra) or isinstance(message.content, list)


def _where(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "message"
    return f"{where}: {problem['msg']} (found {type(problem['input']).__name__})"
