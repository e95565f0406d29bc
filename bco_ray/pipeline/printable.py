"""Text from a log, fit for a terminal or beside an axis."""

from __future__ import annotations


def printable(text: str, characters: int) -> str:
    """One line of at most so many characters, without anything that steers a terminal or turns the writing around."""
    line = "".join(c if c.isprintable() else "·" if not c.isspace() else " " for c in text[: 4 * characters])
    return line if len(line) <= characters else line[: characters - 1] + "…"
