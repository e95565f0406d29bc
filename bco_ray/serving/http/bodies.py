"""What requests may say, field by field. No HTTP in here.

Unknown fields are ignored, as OpenAI's servers do, and an explicit null means the default; but a parameter that would
change the answer and is not implemented is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from bco_ray.schema import Message
from bco_ray.storage.feedback_rows import Vote, require_storable
from bco_ray.web.errors import unsupported

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_PROMPT_IDS = 1 << 20
MAX_LOGPROBS = 20

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "web_search_options": (),
}
"""Parameters that are not implemented, with the values (besides null) that ask for nothing."""


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[
    list[StopString] | None,
    BeforeValidator(
        _one_or_many,
        json_schema_input_type=StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None,
    ),
]


class StreamOptions(BaseModel):
    """`include_usage` sends the token counts as a last chunk."""

    include_usage: bool | None = None


class SamplingRequest(BaseModel):
    """What chat and text completions share. `top_k` is an extension: 0 or -1 switch it off. `store` False: nothing of
    what is said is kept.
    """

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop = Field(default=None, max_length=MAX_STOPS)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    user: str | None = Field(default=None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _implemented(cls, fields: Any) -> Any:
        for name, neutral in _NEUTRAL.items() if isinstance(fields, dict) else ():
            if (given := fields.get(name)) is not None and given not in neutral:
                raise unsupported(name, f"{name}: {ascii(given)[:60]}: not supported here; leave it out.")
        return fields

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

    @property
    def wanted_logprobs(self) -> int | None:
        """Of how many likeliest tokens, beside the sampled one; None: of no token."""
        return None


class ChatRequest(SamplingRequest):
    """`tools` are handed to the chat template; what the model answers stays text."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, wanted: int | None, info: Any) -> int | None:
        if wanted and not info.data.get("logprobs"):
            raise ValueError("goes with logprobs: true")
        return wanted

    @property
    def wanted_logprobs(self) -> int | None:
        """See `SamplingRequest.wanted_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _one_prompt(value: Any) -> Any:
    if not (isinstance(value, list) and value and isinstance(value[0], str | list)):
        return value
    if len(value) > 1:
        raise unsupported("prompt", f"prompt: {len(value)} prompts; send one per request.")
    return value[0]


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(fail_fast=True, max_length=MAX_PROMPT_IDS)]


OnePrompt = str | TokenIds
_ListOfOne = Annotated[list[OnePrompt], Field(min_length=1, max_length=1)]


class TextRequest(SamplingRequest):
    """A raw prompt: text, or token ids; or a list of one of these, which some clients send."""

    prompt: Annotated[OnePrompt, BeforeValidator(_one_prompt, json_schema_input_type=OnePrompt | _ListOfOne)]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @property
    def wanted_logprobs(self) -> int | None:
        """See `SamplingRequest.wanted_logprobs`."""
        return self.logprobs


class FeedbackRequest(Vote):
    """A vote, and perhaps the token that came with the answer."""

    feedback_token: str | None = Field(default=None, max_length=256)

    @property
    def vote(self) -> Vote:
        """Without the token."""
        return Vote.model_construct(**{name: getattr(self, name) for name in Vote.model_fields})


class UpdateRequest(BaseModel):
    """Metadata set on a stored completion; `feedback` in it is a vote."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"feedback": "up"}}]})

    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _storable(self) -> UpdateRequest:
        require_storable(self)
        return self
