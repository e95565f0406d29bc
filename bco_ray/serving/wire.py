"""The OpenAI wire format: what requests may say, and the objects that replies are made of. No HTTP in here.

Unknown request fields are ignored, as OpenAI's servers do; an explicit null means the default.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from bco_ray.schema import Message
from bco_ray.serving.args import Served
from bco_ray.storage.feedback_log import Choice, Completion, VoteEvent, require_storable

Json = dict[str, Any]

MAX_CHOICES = 16


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """`include_usage` sends the token counts as a last chunk."""

    include_usage: bool | None = None


class SamplingRequest(BaseModel):
    """What chat and text completions share. `top_k` is an extension: 0 or -1 switch it off."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[list[StopString] | None, BeforeValidator(_one_or_many)] = Field(default=None, max_length=16)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256)

    @model_validator(mode="after")
    def _storable(self) -> SamplingRequest:
        require_storable(self)
        return self

    @property
    def limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingRequest):
    """`tools` are handed to the chat template; what the model answers stays text."""

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None


class TextRequest(SamplingRequest):
    """A raw prompt: text, or token ids."""

    prompt: str | list[Annotated[int, Field(ge=0, lt=1 << 31)]]


class UpdateRequest(BaseModel):
    """Metadata set on a stored completion; `feedback` in it is a vote."""

    metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class Head:
    """What every part of one reply repeats."""

    id: str
    created: int
    served: Served
    chat: bool

    def envelope(self, kind: str) -> Json:
        """The fields all objects of this reply have."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.model_id,
            "system_fingerprint": self.served.system_fingerprint,
        }


def usage(prompt_tokens: int, choices: list[Choice]) -> Json:
    """Token counts; the prompt counts once however many answers it has."""
    completion_tokens = sum(len(c.token_ids) for c in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def reply(head: Head, prompt_tokens: int, choices: list[Choice]) -> Json:
    """The whole answer of a request without streaming."""
    kind = "chat.completion" if head.chat else "text_completion"
    parts = [_choice(head.chat, i, choice) for i, choice in enumerate(choices)]
    return {**head.envelope(kind), "choices": parts, "usage": usage(prompt_tokens, choices)}


def stored(completion: Completion, metadata: dict[str, str] | None) -> Json:
    """A logged answer as a reply, with the metadata it was just given."""
    chat = completion.endpoint == "chat"
    return {
        "id": completion.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(completion.created_at),
        "model": completion.model,
        "system_fingerprint": completion.system_fingerprint,
        "choices": [_choice(chat, i, choice) for i, choice in enumerate(completion.choices)],
        "usage": usage(len(completion.prompt_ids), completion.choices),
        "metadata": metadata or {},
    }


def first_chunk(head: Head, index: int) -> Json | None:
    """A chat stream opens each choice with its role; a text stream does not."""
    return _chunk(head, index, {"delta": {"role": "assistant", "content": ""}}) if head.chat else None


def text_chunk(head: Head, index: int, text: str) -> Json:
    """Some more of an answer."""
    return _chunk(head, index, {"delta": {"content": text}} if head.chat else {"text": text})


def final_chunk(head: Head, index: int, finish_reason: str) -> Json:
    """The end of one choice."""
    return _chunk(head, index, {"delta": {}} if head.chat else {"text": ""}, finish_reason)


def usage_chunk(head: Head, prompt_tokens: int, choices: list[Choice]) -> Json:
    """The last chunk of a stream with `include_usage`: counts and no choices."""
    return {**head.envelope(_chunk_kind(head)), "choices": [], "usage": usage(prompt_tokens, choices)}


def model(served: Served, name: str) -> Json:
    """A served model under one of its names; `root` is the exact version."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "bco-ray",
        "root": served.model_id,
        "max_model_len": served.context_window,
    }


def page(data: list[Json], *, has_more: bool = False) -> Json:
    """The list envelope."""
    ids = [item.get("id") for item in data]
    edges = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": data, "has_more": has_more, **edges}


def feedback(event: VoteEvent) -> Json:
    """A stored vote. `effective` False: changed or withdrawn by a later one."""
    return {
        "id": event.id,
        "object": "feedback",
        "seq": event.seq,
        "created_at": int(event.created_at),
        "model": event.model,
        "effective": event.effective,
        **event.vote.model_dump(mode="json"),
    }


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def _choice(chat: bool, index: int, choice: Choice) -> Json:
    message = {"role": "assistant", "content": choice.text, "refusal": None}
    content: Json = {"message": message} if chat else {"text": choice.text}
    return {"index": index, **content, "logprobs": None, "finish_reason": choice.finish_reason}


def _chunk_kind(head: Head) -> str:
    return "chat.completion.chunk" if head.chat else "text_completion"


def _chunk(head: Head, index: int, content: Json, finish_reason: str | None = None) -> Json:
    choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
    return {**head.envelope(_chunk_kind(head)), "choices": [choice]}
