"""LangSmith: runs (the answers) and feedback (the votes on them), exported apart or together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import answer_of, prompt_of, text_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    decoded,
    first,
    mapping,
    name,
    names,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.thumbs import THUMBS, thumb


def recognises(row: Row) -> bool:
    """A run, or feedback on one."""
    return _is_run(row) or _is_feedback(row)


def _is_run(row: Row) -> bool:
    return {"id", "run_type", "inputs"} <= row.keys()


def _is_feedback(row: Row) -> bool:
    return {"run_id", "key"} <= row.keys() and any(key in row for key in ("score", "value", "comment", "correction"))


def read(row: Row) -> Iterator[Entry | Refused]:
    """A rating; an answer; or the votes of a run that brings its feedback along."""
    if _is_feedback(row):
        run_id = name(row["run_id"])
        if run_id is None:
            raise Refused("missing_response_id", "the feedback is not on a run")
        yield Entry({**_feedback(row), "response_id": run_id}, "rating")
    elif _is_run(row):
        yield from _run(row)
    else:
        raise wrong_shape(row, "LangSmith")


def _run(row: Row) -> Iterator[Entry | Refused]:
    metadata = mapping(at(row, "extra", "metadata"))
    about = present({
        "response_id": name(row.get("id")),
        "source": "langsmith",
        "user": name(first(metadata, "user_id", "user")),
        "model": name(first(metadata, "ls_model_name", "model")),
        "conversation_id": name(first(metadata, "thread_id", "session_id", "conversation_id")),
        "created_at": seconds(first(row, "end_time", "start_time")),
        "tags": names(row.get("tags")),
        "metadata": scalars(run_type=row.get("run_type")),
    })  # fmt: skip
    if text(row.get("error")) is not None:
        raise Refused("not_an_answer", "the run failed")
    answer = {**about, "prompt": prompt_of(row["inputs"]), "completion": answer_of(row.get("outputs"))}
    votes = objects(first(row, "feedback", "feedbacks"))
    if not votes:
        yield Entry(answer, "response")
    for vote in votes:
        try:
            yield Entry({**answer, **_feedback(vote)})
        except Refused as verdict:
            yield verdict


def _feedback(row: Row) -> dict[str, Any]:
    what = f"feedback {str(row.get('key'))[:60]!r}"
    source = mapping(row.get("feedback_source"))
    if source.get("type") in ("model", "auto_eval"):
        raise Refused("not_human", f"{what} was given by a model, not a person")
    score, correction = first(row, "score", "value"), _correction(row)
    if score is None and (correction is not None or text(row.get("comment")) is not None):
        raise Refused("no_vote", f"{what} is a comment or a correction without a score")
    fields = {
        "id": name(row.get("id")),
        "user": name(source.get("user_id")) or name(at(source, "metadata", "user_id")),
        "created_at": seconds(row.get("created_at")),
        "updated_at": seconds(row.get("modified_at")),
        "comment": text(row.get("comment")),
        "correction": correction,
        "metadata": scalars(score=row.get("key")),
    }
    return {**present(fields), "label": thumb(score, what)}


def _correction(row: Row) -> str | None:
    """Text, or an object shaped like the run's output; one that is neither says nothing about what to answer."""
    given = decoded(row.get("correction"))
    if not given:
        return None
    try:
        return text_of(answer_of(given))
    except Refused:
        return None


FORMAT = Format("langsmith", recognises, read, THUMBS, joins=True)
