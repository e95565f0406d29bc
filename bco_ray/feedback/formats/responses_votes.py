"""Chat completions as an application logs them, and the votes on them, apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import choice_message, prompt_of, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    decoded,
    first,
    name,
    names,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)

_ID = ("response_id", "completion_id")
_LABEL = ("rating", "label", "feedback", "vote", "thumb")
_LABELS: dict[str, bool | None] = {"none": None, "neutral": None}


def recognises(row: Row) -> bool:
    """A completion, or a vote that names one."""
    return _is_completion(row) or _is_vote(row)


def _is_completion(row: Row) -> bool:
    kind = row.get("object", "chat.completion")
    known = isinstance(kind, str) and kind.startswith(("chat.completion", "text_completion"))
    return known and "id" in row and isinstance(row.get("choices"), list)


def _is_vote(row: Row) -> bool:
    named = any(key in row for key in _ID) and any(key in row for key in _LABEL)
    return named and not any(key in row for key in ("completion", "prompt", "request_body", "requestBody"))


def read(row: Row) -> Iterator[Entry | Refused]:
    """One answer for each choice, or one rating."""
    if _is_completion(row):
        yield from _completion(row)
    elif _is_vote(row):
        yield _vote(row)
    else:
        raise wrong_shape(row, "responses and votes")


def _completion(row: Row) -> Iterator[Entry | Refused]:
    if not row["choices"]:
        raise Refused("no_answer", "the completion has no choices")
    request = decoded(row.get("request"))
    request = request if isinstance(request, dict) else row
    response_id = name(row["id"])
    if response_id is None:
        raise Refused("missing_response_id", "the completion has no id")
    about = {
        "source": name(row.get("source")),
        "model": name(first(row, "model")) or name(request.get("model")),
        "user": name(first(request, "user", "safety_identifier")),
        "conversation_id": name(first(row, "conversation_id")),
        "created_at": seconds(first(row, "created", "created_at")),
        "tools": tools_of(request.get("tools")),
        "prompt": prompt_of({key: request[key] for key in ("messages", "system", "prompt") if key in request}),
    }
    for place, choice in enumerate(row["choices"]):
        try:
            yield Entry({**present(about), **_choice(choice, place, response_id)}, "response")
        except Refused as verdict:
            yield verdict


def _choice(choice: Any, place: int, response_id: str) -> dict[str, Any]:
    number = at(choice, "index")
    extra = present({"metadata": scalars(finish_reason=at(choice, "finish_reason"))})
    chosen = _choice_id(response_id, place if number is None else number)
    return {"response_id": chosen, "completion": [choice_message(choice)], **extra}


def _choice_id(response_id: str, index: Any) -> str:
    if isinstance(index, bool) or not isinstance(index, int):
        raise Refused("invalid_field", f"the number of a choice is {str(index)[:20]!r}")
    return response_id if index == 0 else f"{response_id}:{index}"


def _vote(row: Row) -> Entry:
    response_id = name(first(row, *_ID))
    if response_id is None:
        raise Refused("missing_response_id", "the vote does not say on which answer it is")
    index = first(row, "choice_index", "index")
    fields = {
        "id": name(first(row, "id", "vote_id")),
        "response_id": _choice_id(response_id, 0 if index is None else index),
        "user": name(first(row, "user", "user_id")),
        "created_at": seconds(first(row, "created_at", "timestamp")),
        "updated_at": seconds(row.get("updated_at")),
        "comment": text(row.get("comment")),
        "tags": names(row.get("tags")),
        "correction": text(row.get("correction")),
    }
    label = next(row[key] for key in _LABEL if key in row)
    return Entry({**present(fields), "label": label}, "rating")


FORMAT = Format("responses-votes", recognises, read, _LABELS, joins=True)
