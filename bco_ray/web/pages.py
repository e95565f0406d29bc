"""The list envelope."""

from __future__ import annotations

from typing import Any


def page(data: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """A list of objects as OpenAI's clients page through it."""
    ids = [item.get("id") for item in data]
    edges = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": data, "has_more": has_more, **edges}
