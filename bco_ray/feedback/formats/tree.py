"""Chats that branch: every message knows its parent, and regenerated answers are its parent's other children."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import said
from bco_ray.feedback.formats.reading import text


@dataclass(frozen=True)
class Node:
    """A message of a branching chat; `parent` None is the start. `row` is the message as exported."""

    id: str
    parent: str | None
    role: str
    content: str
    row: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether it is a notice of an error instead of an answer; both products mark that with `error`."""
        return self.row.get("error") not in (None, False, "")


class Tree:
    """The messages of one chat by id and by parent. Of several messages with one id the last counts."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self._children: dict[str | None, list[Node]] = {}
        for node in self.nodes.values():
            self._children.setdefault(node.parent, []).append(node)

    def answer(self, message_id: str) -> Node:
        """The rated message. Raises Refused if it is missing or nobody's answer."""
        node = self.nodes.get(message_id)
        if node is None:
            raise Refused("missing_message", f"the rated message {message_id!r} is not in the chat")
        if node.role != "assistant":
            raise Refused("not_an_answer", f"the rated message is by {node.role}, not the assistant")
        if node.failed:
            raise Refused("not_an_answer", "the rated message is an error message")
        return node

    def before(self, node: Node) -> list[dict[str, Any]]:
        """The messages that lead to a node, from the start. Raises Refused if the way up is broken."""
        seen = {node.id}
        way: list[dict[str, Any]] = []
        parent = node.parent
        while parent is not None:
            if parent in seen:
                raise Refused("broken_tree", f"message {parent!r} is its own ancestor")
            if parent not in self.nodes:
                raise Refused("broken_tree", f"message {parent!r}, a parent on the way up, is not in the chat")
            seen.add(parent)
            above = self.nodes[parent]
            way.append(said(above.role, above.content))
            parent = above.parent
        if not way:
            raise Refused("missing_prompt", "nothing was said before the rated message")
        return way[::-1]

    def siblings(self, node: Node) -> list[str]:
        """Other answers to the same message."""
        others = [other for other in self._children[node.parent] if other.role == "assistant" and not other.failed]
        return [other.content for other in others if other.id != node.id and text(other.content) is not None]
