"""All importers by name, and which one a file's first rows call for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from bco_ray.errors import DataError, SpecError
from bco_ray.feedback.formats import (
    anythingllm,
    argilla,
    canonical,
    dify,
    helicone,
    helpsteer,
    langfuse,
    langsmith,
    librechat,
    llama_factory,
    mlflow,
    ms_swift,
    open_webui,
    openai_chat,
    openai_preference,
    responses_votes,
    tensorzero,
    trl_paired,
    ultrafeedback,
)
from bco_ray.feedback.formats.entry import Format, Row
from bco_ray.feedback.formats.mapped import mapped
from bco_ray.feedback.formats.reading import shape

__all__ = ["FORMATS", "by_name", "detect", "mapped"]

_PRODUCTS = (
    open_webui, librechat, mlflow, langsmith, tensorzero, langfuse, helicone, argilla, dify, anythingllm,
    llama_factory, ultrafeedback, helpsteer, openai_preference, trl_paired, canonical, ms_swift, responses_votes,
    openai_chat,
)  # fmt: skip

FORMATS: dict[str, Format] = {product.FORMAT.name: product.FORMAT for product in _PRODUCTS}
"""From the most to the least specific."""

_VOTES = tuple(format_ for format_ in FORMATS.values() if format_.labelled)


def by_name(name: str) -> Format:
    """The importer of that name. Raises SpecError."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise SpecError(f"data.format: {name}: no such format.{meant} There are auto, {', '.join(FORMATS)}, and map.")
    return FORMATS[name]


def detect(rows: Sequence[Row], *, where: str, demonstrations: bool = False) -> Format:
    """The importer of a file with these first rows: the first that knows all of those that any knows.

    `demonstrations`: conversations without a label will do, in a file without any vote. Raises DataError if none does;
    `where` names the file.
    """
    known = [row for row in rows if any(format_.recognises(row) for format_ in _VOTES)]
    for format_ in _VOTES:
        if known and all(format_.recognises(row) for row in known):
            return format_
    if not known and any(openai_chat.recognises(row) for row in rows):
        if demonstrations:
            return openai_chat.FORMAT
        raise DataError(
            f"{where}: its conversations have no label. Give each row one (true or false, for its last message), or "
            'train on all of them as they are: objective.loss: sft (of a job: method {"type": "supervised"}). '
            "Without a loss to go by, name the format: openai-chat."
        )
    way_out = (
        "Name the format (data.format: one of " + ", ".join(FORMATS) + "), or say where things are "
        "(data.format: {map: {prompt: question, completion: answer.text, label: thumb}}, on the command line "
        "--set data.format='{map: {...}}')."
    )
    if known:
        names = sorted({f.name for row in known for f in _VOTES if f.recognises(row)})
        raise DataError(f"{where}: its first rows are of different formats ({', '.join(names)}). {way_out}")
    seen = f"the first row is {shape(rows[0])}" if rows else "it has no readable row"
    raise DataError(f"{where}: no known format; {seen}. {way_out}")
