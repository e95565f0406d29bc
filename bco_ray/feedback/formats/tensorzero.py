"""TensorZero: inferences (the answers) and boolean feedback (the votes on them)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, said, tool_call
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import (
    at,
    decoded,
    dumped,
    first,
    mapping,
    name,
    objects,
    present,
    scalars,
    seconds,
    text,
    wrong_shape,
)
from bco_ray.feedback.formats.thumbs import THUMBS, thumb


def recognises(row: Row) -> bool:
    """An inference, feedback on one, or a demonstration."""
    return _is_inference(row) or _is_feedback(row) or _is_demonstration(row)


def _is_inference(row: Row) -> bool:
    return {"function_name", "variant_name", "input", "output"} <= row.keys()


def _is_feedback(row: Row) -> bool:
    return {"target_id", "value"} <= row.keys() and ("metric_name" in row or "target_type" in row)


def _is_demonstration(row: Row) -> bool:
    return {"id", "inference_id", "value"} <= row.keys()


def read(row: Row) -> Iterator[Entry | Refused]:
    """A rating or an answer."""
    if _is_inference(row):
        yield _inference(row)
    elif _is_feedback(row):
        yield _feedback(row)
    elif _is_demonstration(row):
        raise Refused("no_vote", "a demonstration says what to answer, not whether the answer was good")
    else:
        raise wrong_shape(row, "TensorZero")


def _feedback(row: Row) -> Entry:
    if "metric_name" not in row or row.get("type") in ("comment", "demonstration", "float"):
        raise Refused("not_a_thumb", f"feedback of type {row.get('type', 'comment')!r} is no boolean metric")
    target = name(row["target_id"])
    if target is None:
        raise Refused("missing_response_id", "the feedback is not on an inference")
    fields = {
        "id": name(row.get("id")),
        "response_id": target,
        "user": name(at(row, "tags", "user_id")),
        "created_at": seconds(row.get("timestamp")),
        "metadata": scalars(score=row["metric_name"]),
    }
    label = thumb(row["value"], f"metric {str(row['metric_name'])[:60]!r}")
    return Entry({**present(fields), "label": label}, "rating")


def _inference(row: Row) -> Entry:
    given = mapping(decoded(row["input"]))
    prompt = [*_system(given), *(m for turn in objects(given.get("messages")) for m in _turn(turn))]
    if not any(message["role"] != "system" for message in prompt):
        raise Refused("missing_prompt", "the inference has no input messages")
    fields = {
        "response_id": name(first(row, "id", "inference_id")),
        "source": "tensorzero",
        "model": name(row["variant_name"]),
        "user": name(at(row, "tags", "user_id")),
        "conversation_id": name(row.get("episode_id")),
        "created_at": seconds(row.get("timestamp")),
        "metadata": scalars(function=row["function_name"]),
    }
    words = {"prompt": prompt, "completion": _answer(decoded(row["output"]))}
    return Entry({**present(fields), **words}, "response")


def _system(given: dict[str, Any]) -> list[Message]:
    """Text, or the arguments of a system template, which is not in the export."""
    system = given.get("system")
    return [said("system", dumped(system))] if system else []


def _answer(output: Any) -> list[Message]:
    if isinstance(output, dict):  # of a JSON function
        words = text(output.get("raw"))
        return [said("assistant", words if words is not None else dumped(output.get("parsed")))]
    if isinstance(output, str):
        return [said("assistant", output)]
    answer = _turn({"role": "assistant", "content": output})
    if not answer:
        raise Refused("no_answer", "the inference has no output")
    return answer


def _turn(turn: Message) -> list[Message]:
    """A message of content blocks as messages of text, calls and results."""
    if not isinstance(turn.get("role"), str):
        raise Refused("invalid_message", "a message has no role")
    if isinstance(turn.get("content"), str):
        return [said(turn["role"], turn["content"])]
    blocks = objects(turn.get("content"))
    words = "".join(_words(block) for block in blocks if block.get("type") == "text")
    calls = [_call(block) for block in blocks if block.get("type") == "tool_call"]
    results = [_result(block) for block in blocks if block.get("type") == "tool_result"]
    message = {"role": turn["role"], "content": words or None, **({"tool_calls": calls} if calls else {})}
    return [*results, message] if words or calls else results


def _words(block: Message) -> str:
    return dumped(first(block, "text", "value", "arguments") or "")


def _call(block: Message) -> Message:
    call_name = text(first(block, "name", "raw_name"))
    if call_name is None:
        raise Refused("invalid_message", "a tool call has no name")
    return tool_call(name(block.get("id")), call_name, first(block, "raw_arguments", "arguments") or {})


def _result(block: Message) -> Message:
    called = present({"name": name(block.get("name")), "tool_call_id": name(block.get("id"))})
    return {"role": "tool", "content": dumped(block.get("result")), **called}


FORMAT = Format("tensorzero", recognises, read, THUMBS, joins=True)
