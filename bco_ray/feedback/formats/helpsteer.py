"""HelpSteer and HelpSteer2: answers with a helpfulness from 0 to 4."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, said
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import present, scalars, text, wrong_shape

_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_OTHER_SCALES = ("correctness", "coherence", "complexity", "verbosity")

LABELS: dict[str, bool | None] = {"4": True, "3": False, "2": False, "1": False, "0": False}
"""BCO, appendix C: 4 is a thumbs-up. Another threshold, or a dead zone, is the user's `label_map`."""


def recognises(row: Row) -> bool:
    """By the response and its helpfulness."""
    return "prompt" in row and "response" in row and "helpfulness" in row


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote; the other scales are metadata."""
    if not recognises(row):
        raise wrong_shape(row, "HelpSteer")
    fields = {"prompt": _turns(row["prompt"]), "completion": row["response"], "label": row["helpfulness"]}
    yield Entry({**fields, **present({"metadata": scalars(**{name: row.get(name) for name in _OTHER_SCALES})})})


def _turns(prompt: object) -> list[Message]:
    """What was said before the response: several turns lie in one text, with the marks of NeMo's template."""
    if text(prompt) is None:
        raise Refused("missing_prompt", "the row has no prompt")
    first, *rest = _TURN.split(str(prompt))
    later = [said(role.lower(), words) for role, words in zip(rest[::2], rest[1::2], strict=True)]
    return [said("user", first), *later] if text(first) else later


FORMAT = Format("helpsteer", recognises, read, LABELS)
