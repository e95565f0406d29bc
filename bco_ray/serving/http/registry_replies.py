"""What the registry's routes answer: versions, aliases, canaries, evaluations."""

from __future__ import annotations

from typing import Any, Literal

from bco_ray.serving.http.replies import UnixSeconds
from bco_ray.storage.evaluations import Role
from bco_ray.web.replies import Reply


class Gate(Reply):
    """Whether a version may become `prod`, and everything that is against it."""

    passes: bool
    reasons: list[str]


class RegisteredVersion(Reply):
    """A version and what it was made from. `evaluations`: how many there are. `gate`: null if neither it nor what it
    would replace has one.
    """

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
    """Thumbs on answers of one version that the canary's present share decided: one per answer and person."""

    model: str
    ups: int
    downs: int
    up_rate: float | None


class Bounds(Reply):
    """From `low` to `high`."""

    low: float
    high: float


class Trial(Reply):
    """A canary against prod. `since`: with these versions and this share. `difference`: of the up-rates, may be looked
    at any time; it is wrong with a chance of 1 - `confidence`. `automatic`: it ends itself.
    """

    candidate: TrialSide
    prod: TrialSide
    since: UnixSeconds
    difference: Bounds
    confidence: float
    automatic: bool


class RegisteredModel(Reply):
    """A name, its versions, and what its aliases point at. `before`: where those that can be rolled back go then.
    `history`: every move, oldest first.
    """

    id: str
    object: Literal["registry.model"]
    versions: list[RegisteredVersion]
    aliases: dict[str, int]
    before: dict[str, int]
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
    """Pairs of answers. `swayed`: ties for being judged differently in the two orders. `undecided`: in no rate; where
    they are more than a fifth, no gate goes by it.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    swayed: int
    undecided: int
    rate: Estimated


class EvaluatedAgainst(Reply):
    """What it was compared with. `difference`: its own metrics less this one's, paired; none to the reference, whose
    rewards are all 0.
    """

    model: str
    role: Role
    is_reference: bool
    difference: dict[str, Estimated]
    answer_tokens: Estimated
    win_rate: EvaluatedPairs | None


class MustPass(Reply):
    """Prompts that must be answered well, and the names of those that were not."""

    prompts: int
    failed: list[str]


class RegisteredEvaluation(Reply):
    """The numbers of one evaluation; answers, pictures and settings are in its files. The newest one counts.

    `kl_on_policy`: KL(model || reference) in nats per answer, from answers that the model sampled at temperature 1.
    """

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
    kl_on_policy: Estimated
    opponents: list[EvaluatedAgainst]
    regression: MustPass | None
    notes: list[str]
