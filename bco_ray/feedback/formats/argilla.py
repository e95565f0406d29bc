"""Argilla records: fields with a prompt and an answer, and people's responses to questions about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, answer_of, messages_of, prompt_of, split
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    decoded,
    first,
    items,
    mapping,
    name,
    objects,
    present,
    scalars,
    seconds,
    wrong_shape,
)
from bco_ray.feedback.formats.thumbs import THUMBS, thumb

_PROMPT = ("prompt", "instruction", "question", "messages", "input", "query")
_ANSWER = ("response", "completion", "answer", "output", "generation")
_CHAT = ("chat", "conversation", "messages")


def recognises(row: Row) -> bool:
    """`Record.to_dict` (responses by question) or the API's record (responses by user)."""
    return isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict | list)


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote for each submitted response to a question of two labels."""
    if not recognises(row):
        raise wrong_shape(row, "Argilla")
    responses = list(_responses(row["responses"]))
    if not responses:
        raise Refused("no_vote", "nobody has responded to the record")
    prompt, completion = _conversation(row["fields"])
    record_id = name(first(row, "_server_id", "id", "external_id"))  # users' own ids may repeat
    about = {"response_id": record_id, "source": "argilla", "model": name(mapping(row.get("metadata")).get("model"))}
    for question, response in responses:
        try:
            vote = _vote(question, response)
            yield Entry({**present(about), **vote, "prompt": prompt, "completion": completion})
        except Refused as verdict:
            yield verdict


def _responses(responses: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(question, {value, user_id, status}), from either shape."""
    for question, given in mapping(responses).items():
        yield from ((question, response) for response in objects(given))
    for response in objects(items(responses)):
        for question, answer in mapping(response.get("values")).items():
            yield question, {**response, "value": mapping(answer).get("value")}


def _vote(question: str, response: dict[str, Any]) -> dict[str, Any]:
    what = f"the response to {question[:60]!r}"
    if response.get("status", "submitted") not in ("submitted", None):
        raise Refused("no_vote", f"{what} is {str(response['status'])[:20]}, not submitted")
    value = response.get("value")
    if value is None:
        raise Refused("no_vote", f"{what} is empty")
    if not isinstance(value, str | bool):  # 1 is the worst of a rating from 1 to 5
        raise Refused("not_a_thumb", f"{what} is {str(value)[:60]!r}: a rating or ranking is no thumb")
    fields = {
        "user": name(response.get("user_id")),
        "created_at": seconds(response.get("inserted_at")),
        "updated_at": seconds(response.get("updated_at")),
        "metadata": scalars(score=question),
    }
    return {**present(fields), "label": thumb(value, what)}


def _conversation(fields: dict[str, Any]) -> tuple[list[Message], list[Message]]:
    answer = first(fields, *_ANSWER)
    if answer is None:
        return split(messages_of(decoded(first(fields, *_CHAT))))
    asked = decoded(first(fields, *_PROMPT, *_CHAT))
    if asked is None:
        raise Refused("missing_prompt", f"none of the fields {', '.join(list(fields)[:20])} is a prompt")
    return prompt_of(asked), answer_of(answer)


FORMAT = Format("argilla", recognises, read, THUMBS)
