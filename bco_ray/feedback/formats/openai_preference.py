"""OpenAI's preference data, as its DPO takes them: what was asked, and the answer that was preferred to another."""

from __future__ import annotations

from collections.abc import Iterator

from bco_ray.errors import Refused
from bco_ray.feedback.formats import trl_paired
from bco_ray.feedback.formats.conversation import prompt_of, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import mapping, present, wrong_shape


def recognises(row: Row) -> bool:
    """By the two answers."""
    return "preferred_output" in row and "non_preferred_output" in row


def read(row: Row) -> Iterator[Entry | Refused]:
    """Two votes, as on any pair."""
    if not recognises(row):
        raise wrong_shape(row, "input/preferred_output/non_preferred_output")
    asked = mapping(row.get("input"))
    pair = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    extra = present({"id": row.get("id"), "tools": tools_of(asked.get("tools"))})
    yield from trl_paired.read({**extra, "prompt": prompt_of({"messages": asked.get("messages")}), **pair})


FORMAT = Format("openai-preference", recognises, read)
