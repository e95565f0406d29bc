"""What the routes of models, answers and votes reply, field by field (see `web.replies`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from bco_ray.web.replies import Error, Page, Reply

UnixSeconds = int


class Model(Reply):
    """A served version under one of its names; `root` is the exact version."""

    id: str
    object: Literal["model"]
    created: UnixSeconds
    owned_by: str
    root: str
    max_model_len: int


class CachedTokens(Reply):
    """Of the prompt's tokens, those read from a cache."""

    cached_tokens: int


class Usage(Reply):
    """The prompt counts once however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Likely(Reply):
    """A token, escaped where it is no whole characters; `bytes` is exact."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class ChosenToken(Likely):
    """The sampled one, and the likeliest."""

    top_logprobs: list[Likely]


class ChatLogprobs(Reply):
    """One entry per token of the answer."""

    content: list[ChosenToken]
    refusal: None


class TextLogprobs(Reply):
    """Parallel lists, an entry per token of the answer; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AssistantMessage(Reply):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Reply):
    """One of `n` answers. `finish_reason`: stop, length, or abort for what broke off."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class TextChoice(Reply):
    """One of `n` answers. `finish_reason`: stop, length, or abort for what broke off."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str


class Answered(Reply):
    """`model` and `system_fingerprint` name the exact version."""

    id: str
    created: UnixSeconds
    model: str
    system_fingerprint: str


class ChatCompletion(Answered):
    """`feedback_token` lets a page without a key vote on this answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    feedback_token: str


class TextCompletion(Answered):
    """`feedback_token` lets a page without a key vote on this answer."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    feedback_token: str


class Delta(Reply):
    """The role comes first, text after it, nothing at the end."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """Some more of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class TextChunkChoice(Reply):
    """Some more of one answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class Chunk(Answered):
    """An event of a stream. `usage` with `include_usage`: the counts in the last one, which has no choices."""

    usage: Usage | None = None
    feedback_token: str | None = Field(default=None, description="In the last chunk of each choice.")


class ChatCompletionChunk(Chunk):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextCompletionChunk(Chunk):
    """An event of a text's stream."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]


class StoredCompletion(Answered):
    """A logged answer, and the metadata it was just given."""

    object: Literal["chat.completion", "text_completion"]
    choices: list[ChatChoice | TextChoice]
    usage: Usage
    metadata: dict[str, str]


class Feedback(Reply):
    """A stored vote. `effective` false: changed or withdrawn by a later one. `model`: the version that answered."""

    id: str
    object: Literal["feedback"]
    seq: int
    created_at: UnixSeconds
    model: str
    effective: bool
    response_id: str
    label: bool | None
    choice_index: int
    comment: str | None
    tags: list[str]
    correction: str | None
    user: str | None
    source: str | None
    metadata: dict[str, JsonValue]


class PeopleCount(Reply):
    """People whose first vote is a thumb up, or down."""

    up: int
    down: int


class VoteCount(Reply):
    """Votes that stand on the answers of a version, which `id` names. `side_by_side`: those of them that are of
    comparisons. `people`: of the others each person's first; without a `user` each is a person's.
    """

    id: str
    object: Literal["feedback.count"]
    up: int
    down: int
    side_by_side: int
    people: PeopleCount


class LineResult(Reply):
    """What became of a line: `status` as the vote alone would have been answered."""

    object: Literal["feedback.result"]
    line: int
    status: int
    id: str | None
    error: Error | None = None


class FeedbackBatch(Page):
    """One result per line that is not blank, and how many there are of each kind."""

    data: list[LineResult]
    created: int
    replayed: int
    rejected: int


class Alive(Reply):
    """The process answers."""

    status: Literal["ok"]


class Ready(Reply):
    """The models answer. `refused`: versions that should be served and cannot, and why."""

    status: Literal["ok"]
    models: list[str]
    refused: dict[str, str]
    running: int
    waiting: int
