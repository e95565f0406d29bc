"""Scores of products that record many kinds: which of them are a thumb."""

from __future__ import annotations

from typing import Any

from bco_ray.errors import Refused

THUMBS: dict[str, bool | None] = {
    "-1": False,
    "👍": True, "👎": False,
    "True": True, "False": False,
    "thumbs-up": True, "thumbs-down": False,
    "thumbsUp": True, "thumbsDown": False,
    "thumbsup": True, "thumbsdown": False,
    "like": True, "dislike": False,
    "liked": True, "disliked": False,
    "good": True, "bad": False,
    "positive": True, "negative": False,
    "neutral": None,
}  # fmt: skip
"""Words and signs for a thumb beyond the common ones, as humans and dashboards write them."""

_LONGEST_WORD = 40


def thumb(value: Any, what: str) -> Any:
    """A boolean, 1, 0 or -1, null, or a word, for the label map to look up. Raises Refused for any other score."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool) or (isinstance(value, int) and value in (1, 0, -1)):
        return value
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_WORD:
        return value
    raise Refused("not_a_thumb", f"{what} is {str(value)[:60]!r}, not a boolean or a word; a scale is no thumb")
