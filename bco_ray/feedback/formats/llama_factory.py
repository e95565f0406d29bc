"""LLaMA-Factory's KTO data: `kto_tag` beside Alpaca's columns, or beside ShareGPT's or OpenAI's conversations."""

from __future__ import annotations

from collections.abc import Iterator

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import Message, message_of, said, split, tool_call, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import decoded, items, mapping, name, objects, present, text, wrong_shape


def recognises(row: Row) -> bool:
    """`kto_tag` is nobody else's."""
    return "kto_tag" in row and any(key in row for key in ("instruction", "conversations", "messages"))


def read(row: Row) -> Iterator[Entry | Refused]:
    """One vote, on the last message of the assistant."""
    if not recognises(row):
        raise wrong_shape(row, "LLaMA-Factory KTO")
    turns = objects(row.get("conversations")) or objects(row.get("messages"))
    conversation = [_turn(turn) for turn in turns] if turns else _alpaca(row)
    system = text(row.get("system"))
    if system is not None and (not conversation or conversation[0]["role"] != "system"):
        conversation = [said("system", system), *conversation]
    prompt, completion = split(conversation)
    fields = {"id": name(row.get("id")), "tools": tools_of(row.get("tools"))}
    yield Entry({**present(fields), "prompt": prompt, "completion": completion, "label": row["kto_tag"]})


def _alpaca(row: Row) -> list[Message]:
    """Instruction and input make one question, joined by a line break as LLaMA-Factory does."""
    asked = "\n".join(part for part in (text(row.get("instruction")), text(row.get("input"))) if part is not None)
    if not asked:
        raise Refused("missing_prompt", "the row has neither instruction nor input")
    if text(row.get("output")) is None:
        raise Refused("missing_completion", "the row has no output")
    history = [said(role, words) for pair in items(row.get("history")) for role, words in _exchange(pair)]
    return [*history, said("user", asked), said("assistant", row["output"])]


def _exchange(pair: object) -> list[tuple[str, str]]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(words, str) for words in pair):
        raise Refused("invalid_history", "history is not a list of [question, answer]")
    return [("user", pair[0]), ("assistant", pair[1])]


def _turn(turn: Message) -> Message:
    """A function call is written as JSON text; as a call it is one the template can render."""
    if turn.get("from", turn.get("role")) == "function_call":
        call = mapping(decoded(turn.get("value", turn.get("content"))))
        if text(call.get("name")) is not None:
            calls = [tool_call(None, call["name"], call.get("arguments", {}))]
            return {"role": "assistant", "content": None, "tool_calls": calls}
    return message_of(turn)


FORMAT = Format("llama-factory", recognises, read)
