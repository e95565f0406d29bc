"""OpenAI's chat data, as its supervised method takes them: conversations without a label, each an example to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.conversation import message_of, tools_of
from bco_ray.feedback.formats.entry import Entry, Format, Row
from bco_ray.feedback.formats.reading import present, wrong_shape
from bco_ray.schema import is_unlabelled_chat


def recognises(row: Row) -> bool:
    """By what is not there: any other column might be a vote."""
    return is_unlabelled_chat(row)


def read(row: Row) -> Iterator[Entry | Refused]:
    """As OpenAI trains: each message of the assistant whose `weight` is not 0 is an answer to what came before it."""
    if not recognises(row):
        raise wrong_shape(row, "messages/tools")
    given = row["messages"]
    if "functions" in row or any(isinstance(message, dict) and "function_call" in message for message in given):
        raise Refused("deprecated_functions", "functions and function_call are not read; write tools and tool_calls")
    messages, tools = [message_of(message) for message in given], present({"tools": tools_of(row.get("tools"))})
    if not messages or messages[-1]["role"] != "assistant":
        raise Refused("no_answer", "the conversation does not end with a message of the assistant")
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [place for place in answers if _counts(given[place])]
    if not learned:
        raise Refused("no_weight", "no message of the assistant has weight 1")
    for place in learned:
        if place:
            yield Entry({**tools, "prompt": messages[:place], "completion": [messages[place]]}, "demonstration")
        else:
            yield Refused("missing_prompt", "nothing was said before the answer")


def _counts(message: dict[str, Any]) -> bool:
    """Raises Refused for a weight that OpenAI does not know."""
    weight = message.get("weight")
    if weight is not None and weight not in (0, 1):
        raise Refused("invalid_weight", f"weight is {str(weight)[:60]!r}; OpenAI's are 0 and 1")
    return weight != 0


FORMAT = Format("openai-chat", recognises, read, labelled=False)
