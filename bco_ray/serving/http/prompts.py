"""From a request to the tokens that the model reads. Long prompts are refused early, or tokenized in a thread."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2

from bco_ray.schema import Message
from bco_ray.serving.http.bodies import ChatRequest, SamplingRequest, TextRequest
from bco_ray.serving.http.generation import Prompt
from bco_ray.serving.versions.catalog import Target
from bco_ray.text import Tokenizer, content_text, template_inputs
from bco_ray.web.errors import UNSUPPORTED, ApiError

_TEMPLATE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, jinja2.TemplateError)

LONG_CHARACTERS = 20_000
"""More, of text, keys and values that are rendered, would keep the event loop busy for too long."""


async def prompt_of(target: Target, body: SamplingRequest) -> Prompt:
    """The prompt of a request. Raises ApiError if it cannot be rendered, or does not fit with one token of answer."""
    tokenizer, window = target.tokenizer, target.served.context_window
    render: Callable[[], Prompt]
    said: list[Any]
    if isinstance(body, ChatRequest):
        check_fits(len(body.messages), window, "messages", "at least ")
        messages = [_plain(i, message) for i, message in enumerate(body.messages)]
        tools = _tools(tokenizer, body)
        where, length = "messages", sum(len(message.content or "") for message in messages)
        said = [tools, *([message.role, message.content, message.model_extra] for message in messages)]
        render = lambda: _chat_prompt(tokenizer, messages, tools)  # noqa: E731
    else:
        assert isinstance(body, TextRequest)
        prompt = body.prompt
        where, length, said = "prompt", len(prompt) if isinstance(prompt, str) else 0, [prompt]
        render = lambda: _text_prompt(tokenizer, prompt, window)  # noqa: E731
    if long := _is_long(said):
        check_fits(length // _longest_token(tokenizer), window, where, "at least ")
    rendered = await asyncio.to_thread(render) if long else render()
    check_fits(len(rendered.ids), window, where)
    return rendered


def check_fits(tokens: int, window: int, param: str, about: str = "") -> None:
    """Raises ApiError if a prompt of so many tokens leaves no room in the window."""
    if tokens >= window:
        message = (
            f"This prompt has {about}{tokens} tokens; the model reads {window}, and at least one is needed "
            f"for the answer. Shorten the {param}."
        )
        raise ApiError(400, message, code="context_length_exceeded", param=param)


def _is_long(said: list[Any]) -> bool:
    """Whether there is more in it than `LONG_CHARACTERS`; looks at no more than that."""
    left, rest = LONG_CHARACTERS, said
    while rest and left >= 0:
        value = rest.pop()
        left -= len(value) if isinstance(value, str | list | dict) else 1
        if left >= 0 and isinstance(value, list | dict):
            rest += [*value, *value.values()] if isinstance(value, dict) else value
    return left < 0


@lru_cache(maxsize=16)
def _longest_token(tokenizer: Tokenizer) -> int:
    """In characters of the vocabulary, of which a token has at least as many as of text."""
    return max(map(len, tokenizer.get_vocab()))


def _chat_prompt(tokenizer: Tokenizer, plain: list[Message], tools: list[dict[str, Any]] | None) -> Prompt:
    """Rendered by the model's own template. Raises ApiError if the template refuses the messages."""
    messages = template_inputs(plain)
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=True, add_generation_prompt=True, return_dict=True
        )
    except _TEMPLATE_ERRORS as error:
        message = f"The model's chat template refuses these messages: {error}"
        raise ApiError(400, message, code="template_error", param="messages") from None
    return Prompt(list(encoded["input_ids"]), messages, tools)


def _plain(position: int, message: Message) -> Message:
    """Text parts joined to one string: what most templates can render, and what training will render again."""
    if not isinstance(message.content, list):
        return message
    if any(part.get("type", "text") != "text" for part in message.content):
        where = f"messages.{position}.content"
        raise ApiError(400, f"{where}: this model reads text parts only.", code="unsupported_content", param=where)
    return message.model_copy(update={"content": content_text(message)})


def _tools(tokenizer: Tokenizer, body: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the model is shown. Raises ApiError if its template would leave them out without a word."""
    if not body.tools or body.tool_choice == "none":
        return None
    try:
        template = tokenizer.get_chat_template(tools=body.tools)
    except _TEMPLATE_ERRORS as error:
        raise ApiError(400, f"tools: {error}", code="template_error", param="tools") from None
    if not re.search(r"\btools\b", template):
        message = "tools: this model's chat template has no place for tools; leave them out."
        raise ApiError(400, message, code=UNSUPPORTED, param="tools")
    return body.tools


def _text_prompt(tokenizer: Tokenizer, prompt: str | list[int], window: int) -> Prompt:
    """The log keeps a raw prompt as one user message. Raises ApiError, before it decodes ids that do not fit."""
    ids = list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
    check_fits(len(ids), window, "prompt")
    if not ids:
        raise ApiError(400, "prompt: empty; the model needs at least one token.", code="invalid_field", param="prompt")
    if max(ids) >= len(tokenizer):
        message = f"prompt: {max(ids)} is no token of this model; it has {len(tokenizer)}."
        raise ApiError(400, message, code="invalid_field", param="prompt")
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    return Prompt(ids, [{"role": "user", "content": text}])
