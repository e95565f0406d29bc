"""What the routes of models, answers, votes and the registry reply, field by field (see `web.replies`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


class VoteCount(Reply):
    """Votes that stand on the answers of a version, which `id` names."""

    id: str
    object: Literal["feedback.count"]
    up: int
    down: int


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


class Gate(Reply):
    """Whether a version may become `prod`, and everything that is against it."""

    passes: bool
    reasons: list[str]


class RegisteredVersion(Reply):
    """A version and what it was made from. `evaluations`: how many there are. `gate`: null if it has none."""

    id: str
    object: Literal["registry.version"]
    version: int
    aliases: list[str]
    registered_at: UnixSeconds | None
    run: str | None
    parent: str | None
    votes: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    evaluations: int
    gate: Gate | None


class Canary(Reply):
    """The share of the version behind `alias`."""

    alias: str
    percent: float


class TrialSide(Reply):
    """Thumbs on one version since the trial began, each person's first."""

    model: str
    ups: int
    downs: int
    up_rate: float | None


class Bounds(Reply):
    """From `low` to `high`."""

    low: float
    high: float


class Trial(Reply):
    """A canary against prod. `difference`: of the up-rates, may be looked at any time. `automatic`: it ends itself."""

    candidate: TrialSide
    prod: TrialSide
    since: UnixSeconds
    difference: Bounds
    automatic: bool


class RegisteredModel(Reply):
    """A name, its versions, and what its aliases point at. `history`: every move, oldest first."""

    id: str
    object: Literal["registry.model"]
    versions: list[RegisteredVersion]
    aliases: dict[str, int]
    canary: Canary | None
    trial: Trial | None
    generation: int
    history: list[dict[str, Any]]


class Estimated(Reply):
    """A number and its interval; null where the votes do not say."""

    value: float | None
    low: float | None
    high: float | None


class EvaluatedVotes(Reply):
    """Held-out votes, and what the model's rewards say of them."""

    rows: int
    ups: int
    prompts: int
    metrics: dict[str, Estimated]


class EvaluatedPairs(Reply):
    """Pairs of answers. `swayed`: ties for being judged differently in the two orders. `undecided`: in no rate."""

    judge: str
    wins: int
    ties: int
    losses: int
    swayed: int
    undecided: int
    rate: Estimated


class EvaluatedAgainst(Reply):
    """What it was compared with. `difference`: its own metrics less this one's, paired."""

    model: str
    role: Literal["base", "live", "named"]
    difference: dict[str, Estimated]
    answer_tokens: Estimated
    win_rate: EvaluatedPairs | None


class MustPass(Reply):
    """Prompts that must be answered well, and the names of those that were not."""

    prompts: int
    failed: list[str]


class RegisteredEvaluation(Reply):
    """The numbers of one evaluation; answers, pictures and settings are in its files. The newest one counts."""

    id: str
    object: Literal["registry.evaluation"]
    model: str
    number: int
    at: UnixSeconds
    run: str | None
    confidence: float | None
    votes: EvaluatedVotes | None
    answers: int
    answer_tokens: Estimated
    opponents: list[EvaluatedAgainst]
    regression: MustPass | None
    notes: list[str]


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
