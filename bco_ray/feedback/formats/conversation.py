"""Prompts and answers out of what applications log as input and output: text, chat messages, requests, responses."""

from __future__ import annotations

from typing import Any

from bco_ray.errors import Refused
from bco_ray.feedback.formats.reading import at, decoded, dumped, first, items, mapping, objects, text

Message = dict[str, Any]

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "HumanMessage": "user",
    "AIMessage": "assistant",
    "AIMessageChunk": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
}
"""Other names of the roles."""

_QUESTION_KEYS = ("input", "question", "query", "prompt", "message", "user_input", "text", "content")
_ANSWER_KEYS = ("output", "answer", "response", "completion", "text", "content", "result", "message", "output_text")
_PROMPT_LISTS = ("messages", "chat_history", "input", "contents")


def said(role: str, content: str) -> Message:
    """A message of plain text."""
    return {"role": role, "content": content}


def message_of(value: Any) -> Message:
    """One message in OpenAI's shape, from that, ShareGPT's from/value, or LangChain's. Raises Refused."""
    given = mapping(value)
    if given.get("lc") is not None or "kwargs" in given:  # LangChain's serialized objects
        given = {"type": at(given, "id", -1), **mapping(given.get("kwargs"))}
    elif isinstance(given.get("data"), dict) and "content" in given["data"]:
        given = {**given, **given["data"]}
    role = first(given, "role", "from", "type")
    if not isinstance(role, str) or not role:
        raise Refused("invalid_message", "a message has no role")
    extra = {key: given[key] for key in ("tool_call_id", "name") if text(given.get(key)) is not None}
    if objects(given.get("tool_calls")):
        extra["tool_calls"] = [_openai_call(call) for call in objects(given["tool_calls"])]
    return {"role": ROLES.get(role, role), "content": content_of(first(given, "content", "value", "parts")), **extra}


def _openai_call(call: Message) -> Message:
    if "function" in call or text(call.get("name")) is None:
        return call
    return tool_call(text(call.get("id")), call["name"], first(call, "args", "arguments"))


def content_of(value: Any) -> str | list[Message] | None:
    """Content of a message: parts that are all text become text, others stay parts. Raises Refused."""
    if value is None or isinstance(value, str):
        return value
    parts = [said_part(item) for item in items(value)]
    if not parts:
        raise Refused("invalid_message", f"content is {type(value).__name__}, not text or parts")
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def said_part(value: Any) -> str | Message:
    """One part of a content: its text, or the part itself if it is something else. Raises Refused."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise Refused("invalid_message", f"a part of a content is {type(value).__name__}, not an object")
    is_text = value.get("type", "text") in ("text", "input_text", "output_text")
    return value["text"] if is_text and isinstance(value.get("text"), str) else value


def messages_of(value: Any) -> list[Message]:
    """A list of messages; LangChain's lists of lists of one. Raises Refused."""
    given = items(value)
    if len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    return [message_of(item) for item in given]


def split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A conversation's rated part is its last message, by the assistant; before it is the prompt. Raises Refused."""
    if not messages or messages[-1]["role"] != "assistant":
        raise Refused("no_answer", "the conversation does not end with a message of the assistant")
    if len(messages) == 1:
        raise Refused("missing_prompt", "nothing was said before the answer")
    return messages[:-1], messages[-1:]


def prompt_of(value: Any) -> list[Message]:
    """What was asked, from what an application logged as its input. Raises Refused.

    Text; a list of messages; a request body (messages, system; or prompt); an object with one text, or with one of
    the usual names for it.
    """
    value = decoded(value)
    if text(value) is not None:
        return [said("user", value)]
    if isinstance(value, list):
        return _asked(messages_of(value))
    body = mapping(value)
    key = next((key for key in _PROMPT_LISTS if objects(body.get(key)) or mapping(at(body, key, 0, 0))), None)
    if key is not None:
        question = _question(body) if key == "chat_history" else []
        return _asked([*_system(body), *messages_of(body[key]), *question])
    for name in ("input", "inputs", "args", "request"):
        if isinstance(body.get(name), dict):
            return prompt_of(body[name])
    system = _system(body)
    return _asked([*system, *(_question(body) or ([] if system else _only_text(body, "user")))])


def _question(body: dict[str, Any]) -> list[Message]:
    """The question beside a history, or on its own."""
    return next(([said("user", body[key])] for key in _QUESTION_KEYS if text(body.get(key)) is not None), [])


def _system(body: dict[str, Any]) -> list[Message]:
    content = content_of(first(body, "system", "system_prompt", "instructions"))
    return [{"role": "system", "content": content}] if content else []


def _only_text(body: dict[str, Any], role: str) -> list[Message]:
    texts = [value for value in body.values() if text(value) is not None]
    return [said(role, texts[0])] if len(texts) == 1 == len(body) else []


def _asked(messages: list[Message]) -> list[Message]:
    if not any(message["role"] != "system" for message in messages):
        raise Refused("missing_prompt", "the logged input holds no question")
    return messages


def answer_of(value: Any) -> list[Message]:
    """The answer, from what an application logged as its output. Raises Refused.

    Text; a message; a response body (choices, or content parts); messages, of which the last; LangChain's
    generations; an object with one text, or with one of the usual names for it.
    """
    value = decoded(value)
    if text(value) is not None:
        return [said("assistant", value)]
    if isinstance(value, list):
        return _last(value)
    body = mapping(value)
    if objects(body.get("choices")):
        return [choice_message(body["choices"][0])]
    if items(body.get("generations")):
        return _generation(body)
    if items(body.get("messages")):
        return _last(body["messages"])
    if isinstance(first(body, "role", "type", "lc"), str | int) and ("content" in body or "kwargs" in body):
        return [_by_assistant(message_of({"role": "assistant", **body} if body.get("type") == "message" else body))]
    for key in _ANSWER_KEYS:
        if body.get(key) and isinstance(body[key], str | dict | list):
            return answer_of(body[key])
    return _only_text(body, "assistant") or _no_answer("the logged output holds no answer")


def _last(value: list[Any]) -> list[Message]:
    if all(isinstance(item, dict) and item.get("type") in ("text", "output_text") for item in value) and value:
        return [{"role": "assistant", "content": content_of(value)}]
    messages = messages_of(value)
    return [_by_assistant(messages[-1])] if messages else _no_answer("the logged output is an empty list")


def _generation(body: dict[str, Any]) -> list[Message]:
    found = body["generations"][0]
    found = mapping(found[0] if isinstance(found, list) and found else found)
    return answer_of(first(found, "message", "text"))


def choice_message(choice: Any) -> Message:
    """The message of one of a chat completion's (or a text completion's) choices. Raises Refused."""
    body = mapping(choice)
    if isinstance(body.get("message"), dict):
        return _by_assistant(message_of({"role": "assistant", **body["message"]}))
    if isinstance(body.get("text"), str):
        return said("assistant", body["text"])
    if "delta" in body:
        raise Refused("streamed_chunk", "a chunk of a streamed answer; log the whole answer")
    raise Refused("no_answer", "a choice has neither message nor text")


def _by_assistant(message: Message) -> Message:
    if message["role"] != "assistant":
        raise Refused("no_answer", f"the last message is by {message['role']}, not the assistant")
    return message


def _no_answer(detail: str) -> list[Message]:
    raise Refused("no_answer", detail)


def text_of(messages: list[Message]) -> str | None:
    """An answer as text, for siblings and corrections; None if it has none."""
    return next((m["content"] for m in reversed(messages) if text(m["content"]) is not None), None)


def tools_of(value: Any) -> list[Message] | None:
    """Tool definitions, given as a list or as its JSON."""
    found = objects(decoded(value))
    return found or None


def tool_call(call_id: str | None, function: str, arguments: Any) -> Message:
    """A call in OpenAI's shape."""
    call = {"type": "function", "function": {"name": function, "arguments": dumped(arguments)}}
    return call if call_id is None else {"id": call_id, **call}
