"""LibreChat's JSON export of a conversation: messages as a list, or as a tree of children."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import said
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    first,
    items,
    mapping,
    name,
    names,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.tree import Node, Tree

_START = "00000000-0000-0000-0000-000000000000"


def recognises(row: Row) -> bool:
    """A conversation with its messages; a recursive export calls them `messagesTree`."""
    return "conversationId" in row and any(
        isinstance(row.get(key), list | dict) for key in ("messages", "messagesTree")
    )


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote for each message with feedback."""
    if not recognises(row):
        raise wrong_shape(row, "LibreChat")
    tree = Tree(_nodes(first(row, "messages", "messagesTree")))
    rated = [node for node in tree.nodes.values() if "rating" in mapping(node.row.get("feedback"))]
    if not rated:
        raise Refused("no_vote", "no message of this conversation has feedback")
    for node in rated:
        try:
            yield _vote(row, tree, node)
        except Refused as verdict:
            yield verdict


def _vote(row: Row, tree: Tree, node: Node) -> Entry:
    node = tree.answer(node.id)
    feedback, tag = node.row["feedback"], node.row["feedback"].get("tag")
    fields = {
        "response_id": node.id,
        "source": "librechat",
        "model": name(node.row.get("model")) or name(at(row, "options", "model")),
        "user": name(node.row.get("user")) or name(row.get("user")),
        "conversation_id": name(row.get("conversationId")),
        "created_at": seconds(node.row.get("createdAt")),
        "updated_at": seconds(node.row.get("updatedAt")),
        "comment": text(feedback.get("text")),
        "tags": names(tag.get("key") if isinstance(tag, dict) else tag),
        "siblings": tree.siblings(node),
        "metadata": scalars(endpoint=first(node.row, "endpoint") or row.get("endpoint")),
    }
    system = text(first(mapping(row.get("options")), "promptPrefix", "system"))
    prompt = [*([said("system", system)] if system is not None else []), *tree.before(node)]
    words = {"prompt": prompt, "completion": [said("assistant", node.content)], "label": feedback["rating"]}
    return Entry({**present(fields), **words})


def _nodes(messages: Any) -> Iterator[Node]:
    """Flat or nested; a nested message without a parent of its own is a child of the one it lies in."""
    waiting: list[tuple[Any, str | None]] = [
        (m, None) for m in (messages if isinstance(messages, list) else [messages])
    ]
    for message, above in waiting:
        row = mapping(message)
        message_id = name(row.get("messageId"))
        parent = name(row.get("parentMessageId")) or above
        if message_id is not None:
            yield Node(message_id, None if parent == _START else parent, _role(row), _words(row), row)
        waiting += [(child, message_id) for child in objects(row.get("children"))]


def _role(row: Row) -> str:
    by_user = row.get("isCreatedByUser")
    if isinstance(by_user, bool):
        return "user" if by_user else "assistant"
    return "user" if row.get("sender") == "User" else "assistant"


def _words(row: Row) -> str:
    """Text parts of the content (not its thoughts and tool calls), else the text."""
    parts = [
        part["text"] for part in objects(items(row.get("content"))) if part.get("type") == "text" and "text" in part
    ]
    words = [mapping(part).get("value") if isinstance(part, dict) else part for part in parts]
    found = "".join(word for word in words if isinstance(word, str))
    return found or text(row.get("text")) or ""


FORMAT = Format("librechat", recognises, read, {"thumbsUp": True, "thumbsDown": False})
