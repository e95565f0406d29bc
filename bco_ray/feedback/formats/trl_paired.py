"""Preference pairs, as TRL and most public datasets have them: chosen is a thumbs-up, rejected a thumbs-down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, messages_of, said, text_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import name, present, wrong_shape
from bco_ray.schema import Record

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_SHARED = frozenset(Record.model_fields) - {
    "id", "prompt", "completion", "label", "label_raw", "response_id", "siblings"
}  # fmt: skip


def recognises(row: Row) -> bool:
    """With or without a prompt."""
    return "chosen" in row and "rejected" in row


def read(row: Row) -> Iterator[Entry | Refused]:
    """Two votes; without a prompt of its own, the prompt is what both conversations have in common."""
    if not recognises(row):
        raise wrong_shape(row, "chosen/rejected")
    prompt, chosen, rejected = _parts(row)
    if chosen == rejected:
        raise Refused("no_difference", "chosen and rejected are the same")
    shared = {key: value for key, value in row.items() if key in _SHARED}
    for side, label, answer, other in (("chosen", True, chosen, rejected), ("rejected", False, rejected, chosen)):
        row_id = name(row.get("id"))
        extra = present({"id": row_id and f"{row_id}:{side}", "siblings": [text_of(_list(other))]})
        yield Entry({**shared, **extra, "prompt": prompt, "completion": answer, "label": label})


def _parts(row: Row) -> tuple[Any, Any, Any]:
    prompt, chosen, rejected = row.get("prompt"), _turns(row, "chosen"), _turns(row, "rejected")
    if isinstance(chosen, str) or isinstance(rejected, str):
        if not prompt:
            raise Refused("missing_prompt", "the row has no prompt, and chosen and rejected are text, not messages")
        return prompt, chosen, rejected
    asked = prompt if isinstance(prompt, list) else []
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
    if prompt and not (shared and chosen[0]["role"] in ("system", "user")):
        return prompt, chosen, rejected  # the answers alone
    if len(asked) <= shared and asked and messages_of(asked) == chosen[: len(asked)]:
        shared = len(asked)
    if not shared:
        raise Refused("missing_prompt", "chosen and rejected have no message in common, and the row has no prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _turns(row: Row, side: str) -> Any:
    """Text stays text; a dialogue written as text (`Human: ... Assistant: ...`) without a prompt is cut into turns."""
    value = row[side]
    if isinstance(value, list):
        return messages_of(value)
    if not isinstance(value, str):
        raise Refused("invalid_completion", f"{side} is {type(value).__name__}, not text or a list of messages")
    cut = [] if row.get("prompt") else _TURN.split(value)
    if len(cut) < 5 or cut[0].strip():
        return value
    roles = ["user" if speaker == "Human" else "assistant" for speaker in cut[1::2]]
    return [said(role, words.strip()) for role, words in zip(roles, cut[2::2], strict=True)]


def _list(answer: Any) -> list[Message]:
    return [said("assistant", answer)] if isinstance(answer, str) else answer


FORMAT = Format("trl-paired", recognises, read)
