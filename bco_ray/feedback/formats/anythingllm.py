"""AnythingLLM's chat export (JSON or CSV), or rows of its chat table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import said
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import at, decoded, first, name, present, scalars, seconds, text, wrong_shape

_NOBODY = ("API", "unknown user")


def recognises(row: Row) -> bool:
    """Prompt and response with a column that is AnythingLLM's own."""
    rated = (
        "feedbackScore" in row or "sent_at" in row or "workspace" in row or row.get("rating") in ("GOOD", "BAD", "--")
    )
    return "prompt" in row and "response" in row and rated


def read(row: Row) -> Iterator[Entry | Refused]:
    """At most one vote: a chat is a question and its answer."""
    if not recognises(row):
        raise wrong_shape(row, "AnythingLLM")
    label = first(row, "rating", "feedbackScore")
    if label is None or label in ("--", ""):
        raise Refused("no_vote", "the answer was not rated")
    question, answer = text(row["prompt"]), _answer(row)
    if question is None:
        raise Refused("missing_prompt", "the row has no prompt")
    if answer is None:
        raise Refused("missing_completion", "the row has no response")
    row_id = name(row.get("id"))
    who = first(row, "username", "user_id") or at(row, "user", "username")
    fields = {
        "response_id": None if row_id is None else f"anythingllm:{row_id}",  # a row's number, and others count too
        "source": "anythingllm",
        "user": None if who in _NOBODY else name(who),
        "conversation_id": name(first(row, "thread_id", "api_session_id", "session_id")),
        "created_at": seconds(first(row, "sent_at", "createdAt")),
        "metadata": scalars(workspace=at(row, "workspace", "name") or first(row, "workspace", "workspaceId")),
    }
    words = {"prompt": [said("user", question)], "completion": [said("assistant", answer)], "label": label}
    yield Entry({**present(fields), **words})


def _answer(row: Row) -> str | None:
    """The table keeps an object with the text and its sources, as JSON; the export only the text."""
    body: Any = decoded(row["response"])
    if isinstance(body, dict) and ("feedbackScore" in row or {"sources", "type"} & body.keys()):
        return text(body.get("text"))
    return text(row["response"])


FORMAT = Format("anythingllm", recognises, read, {"GOOD": True, "BAD": False})
