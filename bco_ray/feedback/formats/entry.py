"""What an importer is: a pure function from one row of a product's export to the votes in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bco_ray.errors import Refused

Row = dict[str, Any]
"""One row of an export, as JSON decoded it."""

Kind = Literal["vote", "response", "rating", "demonstration"]


@dataclass(frozen=True)
class Entry:
    """One thing a row says, in the names of `schema.Record`; values as the export spells them.

    `label` is present in a vote or a rating: any JSON scalar (looked up in the label map), or None for neutral or
    withdrawn. `prompt` and `completion` are text or lists of messages. A `response` is an answer without its vote, a
    `rating` a vote without its answer; both carry `response_id`, on which they are joined. A `demonstration` is an
    answer to learn from that nobody voted on: it has no label and counts as a thumbs-up.
    """

    fields: dict[str, Any]
    kind: Kind = "vote"


Read = Callable[[Row], Iterator[Entry | Refused]]
"""Yields the entries of a row. What cannot be used is yielded as a Refused (one of several votes) or raised (the row).

A row without any vote raises Refused("no_vote", ...).
"""


@dataclass(frozen=True)
class Format:
    """One product's export. `recognises` must be cheap and true for no other product's rows."""

    name: str
    recognises: Callable[[Row], bool]
    read: Read
    label_map: Mapping[str, bool | None] = field(default_factory=dict)
    """Spellings of this product beyond the common ones (true/false, 1/0, up/down, thumbs_up/thumbs_down)."""
    joins: bool = False
    """Whether it yields responses and ratings, which need the join."""
    labelled: bool = True
    """False: its rows are no votes. It is never detected where votes are wanted, only if somebody names it."""
