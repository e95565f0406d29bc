"""Dify's messages, from its API (one `feedback`) or its console (a list of `feedbacks`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, message_of, said
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    first,
    mapping,
    name,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)


def recognises(row: Row) -> bool:
    """A message holds a question and its answer."""
    return {"query", "answer", "conversation_id"} <= row.keys()


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote for each feedback; a rating of null is a vote that was taken back."""
    if not recognises(row):
        raise wrong_shape(row, "Dify")
    votes = [vote for vote in [*objects(row.get("feedbacks")), mapping(row.get("feedback"))] if "rating" in vote]
    if not votes:
        raise Refused("no_vote", "the message has no feedback")
    answer = text(row["answer"])
    if answer is None:
        raise Refused("missing_completion", "the message has no answer")
    prompt = _prompt(row)
    for vote in votes:
        words = {"prompt": prompt, "completion": [said("assistant", answer)], "label": vote["rating"]}
        yield Entry({**_about(row, vote), **words})


def _about(row: Row, vote: dict[str, Any]) -> dict[str, Any]:
    voter = first(vote, "from_end_user_id", "from_account_id") or at(vote, "from_account", "id")
    if voter is None and vote.get("from_source") != "admin":
        voter = first(row, "from_end_user_id", "from_account_id", "user")
    fields = {
        "id": name(vote.get("id")),
        "response_id": name(row.get("id")),
        "source": "dify",
        "model": name(first(row, "model_id")),
        "user": name(voter),
        "conversation_id": name(row.get("conversation_id")),
        "created_at": seconds(first(vote, "created_at") or row.get("created_at")),
        "updated_at": seconds(vote.get("updated_at")),
        "comment": text(vote.get("content")),
        "correction": text(at(row, "annotation", "content")),
        "metadata": scalars(from_source=vote.get("from_source")),
    }
    return present(fields)


def _prompt(row: Row) -> list[Message]:
    """What the model was sent, where the console shows it (system prompt and history included), else the question."""
    sent = [
        message_of({**part, "content": part.get("text")})
        for part in objects(row.get("message"))
        if text(part.get("role")) is not None
        and (text(part.get("text")) is not None or objects(part.get("tool_calls")))
    ]
    while sent and sent[-1]["role"] == "assistant":  # a log of the console ends with the answer itself
        sent.pop()
    if sent:
        return sent
    question = text(row["query"])
    if question is None:
        raise Refused("missing_prompt", "the message has no query")
    return [said("user", question)]


FORMAT = Format("dify", recognises, read, {"like": True, "dislike": False})
