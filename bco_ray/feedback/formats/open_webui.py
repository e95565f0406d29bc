"""Open WebUI: the feedback export (a vote with a snapshot of its chat), and older chats with annotated messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import said
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    decoded,
    first,
    mapping,
    name,
    names,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.tree import Node, Tree


def recognises(row: Row) -> bool:
    """A feedback row, or a chat."""
    return _is_feedback(row) or _history(row) is not None


def _is_feedback(row: Row) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("meta"), dict) and {"user_id", "type"} <= row.keys()


def _history(row: Row) -> dict[str, Any] | None:
    """The messages by id of the innermost `chat` that has some."""
    for path in (("chat", "chat", "history"), ("chat", "history"), ("history",)):
        messages = at(row, *path, "messages")
        if isinstance(messages, dict):
            return messages
    return None


def read(row: Row) -> Iterator[Entry | Refused]:
    """The vote of a feedback row, or one for each annotated message of a chat."""
    if _is_feedback(row):
        yield _feedback(row)
    elif (history := _history(row)) is not None:
        yield from _annotated(row, history)
    else:
        raise wrong_shape(row, "Open WebUI")


def _feedback(row: Row) -> Entry:
    data, meta, snapshot = row["data"], row["meta"], mapping(decoded(row.get("snapshot")))
    if "rating" not in data:
        raise Refused("no_vote", f"feedback of type {row['type']!r} without a rating")
    history, message_id = _history(snapshot), name(meta.get("message_id"))
    if history is None:
        raise Refused("missing_snapshot", "the vote has no snapshot of its chat; export the feedback with snapshots")
    if message_id is None:
        raise Refused("missing_message", "the vote does not say which message it is on (meta.message_id)")
    rating = {key: data[key] for key in ("rating", "reason", "comment", "tags", "details") if key in data}
    fields = {
        "id": name(row.get("id")),
        "user": name(row.get("user_id")),
        "model": name(data.get("model_id")),
        "conversation_id": name(meta.get("chat_id")),
        "created_at": seconds(row.get("created_at")),
        "updated_at": seconds(row.get("updated_at")),
    }
    return _vote(Tree(_nodes(history)), snapshot, message_id, rating, fields, arena=meta.get("arena"))


def _annotated(row: Row, history: dict[str, Any]) -> Iterator[Entry | Refused]:
    tree = Tree(_nodes(history))
    rated = [node for node in tree.nodes.values() if "rating" in mapping(node.row.get("annotation"))]
    if not rated:
        raise Refused("no_vote", "no message of this chat is annotated with a rating")
    for node in rated:
        try:
            when = seconds(first(node.row, "timestamp") or row.get("updated_at"))
            who = {"user": name(row.get("user_id")), "conversation_id": name(row.get("id")), "created_at": when}
            yield _vote(tree, row, node.id, node.row["annotation"], who)
        except Refused as verdict:
            yield verdict


def _vote(tree: Tree, chat: Row, message_id: str, rating: dict[str, Any], fields: dict[str, Any], **more: Any) -> Entry:
    node = tree.answer(message_id)
    said_so = {
        "source": "open-webui",
        "response_id": message_id,
        "model": fields.get("model") or name(node.row.get("model")),
        "comment": text(rating.get("comment")),
        "tags": names(rating.get("tags")),
        "siblings": tree.siblings(node),
        "metadata": scalars(reason=rating.get("reason"), stars=at(rating, "details", "rating"), **more),
    }
    prompt = [*_system(chat), *tree.before(node)]
    words = {"prompt": prompt, "completion": [said("assistant", node.content)], "label": rating["rating"]}
    return Entry({**present({**fields, **said_so}), **words})


def _system(chat: Row) -> list[dict[str, Any]]:
    """The system prompt set for this chat, if any; the model's own is not exported."""
    inner = next((found for found in (at(chat, "chat", "chat"), at(chat, "chat")) if isinstance(found, dict)), {})
    words = text(at(inner, "params", "system")) or text(inner.get("system"))
    return [] if words is None else [said("system", words)]


def _nodes(history: dict[str, Any]) -> Iterator[Node]:
    for key, message in history.items():
        row = mapping(message)
        role, content = row.get("role"), row.get("content")
        if isinstance(role, str):
            yield Node(key, name(row.get("parentId")), role, content if isinstance(content, str) else "", row)


FORMAT = Format("open-webui", recognises, read, {"-1": False})
