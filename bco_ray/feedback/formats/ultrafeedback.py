"""UltraFeedback: an instruction, the answers of several models, and GPT-4's ratings of each from 1 to 5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import at, name, objects, present, scalars, text, wrong_shape

LABELS: dict[str, bool | None] = {"5": True, "4": False, "3": False, "2": False, "1": False, "N/A": None}
"""As BCO's first author labelled it: 5 is a thumbs-up. Another threshold, or a dead zone, is a `label_map`."""


def recognises(row: Row) -> bool:
    """By the annotations of its completions."""
    return "instruction" in row and any("annotations" in answer for answer in objects(row.get("completions")))


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote for each answer, by its helpfulness; the principle that shaped the answer is metadata, no prompt."""
    if not recognises(row):
        raise wrong_shape(row, "UltraFeedback")
    if text(row["instruction"]) is None:
        raise Refused("missing_prompt", "the row has no instruction")
    answers = objects(row["completions"])
    for place, answer in enumerate(answers):
        others = [answers[i].get("response") for i in range(len(answers)) if i != place]
        yield _vote(row, answer, [other for other in others if isinstance(other, str) and other])


def _vote(row: Row, answer: dict[str, Any], others: list[str]) -> Entry | Refused:
    helpfulness = at(answer, "annotations", "helpfulness", "Rating")
    if helpfulness is None:
        return Refused("no_vote", "the answer has no annotations.helpfulness.Rating")
    about = {
        "source": name(row.get("source")),
        "model": name(answer.get("model")),
        "siblings": others,
        "metadata": scalars(principle=text(answer.get("principle")), overall_score=answer.get("overall_score")),
    }
    fields = {"prompt": row["instruction"], "completion": answer.get("response"), "label": helpfulness}
    return Entry({**fields, **present(about)})


FORMAT = Format("ultrafeedback", recognises, read, LABELS)
