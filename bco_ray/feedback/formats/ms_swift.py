"""ms-swift's KTO data: a conversation and a label for its last message."""

from __future__ import annotations

from collections.abc import Iterator

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import messages_of, split, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import name, present, wrong_shape


def recognises(row: Row) -> bool:
    """A list of messages with a label, and no completion apart from it."""
    return isinstance(row.get("messages"), list) and "label" in row and "completion" not in row


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote, on the last message."""
    if not recognises(row):
        raise wrong_shape(row, "messages/label")
    prompt, completion = split(messages_of(row["messages"]))
    extra = {"id": name(row.get("id")), "tools": tools_of(row.get("tools"))}
    yield Entry({**present(extra), "prompt": prompt, "completion": completion, "label": row["label"]})


FORMAT = Format("ms-swift", recognises, read)
