"""The policy of promotion: what a version's evaluation must say before `prod` may point at it.

A threshold is met by the cautious end of the interval unless `bound` says which: `min` by the lower end, `max` by the
upper one. What an evaluation does not tell (too few held-out votes of a class, no judge) meets nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bco_ray.config.section import Positive, PositiveInt, Section

Bound = Literal["cautious", "lower", "value", "upper"]


class Threshold(Section):
    """At least `min`, at most `max`, or both."""

    min: float | None = None
    max: float | None = None
    bound: Bound = "cautious"

    @model_validator(mode="after")
    def _says_something(self) -> Threshold:
        if self.min is None and self.max is None:
            raise ValueError("say min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not exceed max")
        return self


class MetricThresholds(Section):
    """Of what is measured on held-out votes (docs/evaluation.md)."""

    auc: Threshold | None = None
    accuracy: Threshold | None = None
    balanced_accuracy: Threshold | None = None
    margin: Threshold | None = None
    kl: Threshold | None = None
    brier: Threshold | None = None
    ece: Threshold | None = None
    length_correlation: Threshold | None = None

    def metrics(self) -> Iterator[tuple[str, Threshold]]:
        """Those that are set."""
        for name in MetricThresholds.model_fields:
            if (threshold := getattr(self, name)) is not None:
                yield name, threshold

    @property
    def measures(self) -> bool:
        """Whether any is set."""
        return any(True for _ in self.metrics())


class CanaryPolicy(Section):
    """When a canary of the version ends by itself: by the interval of its up-rate less that of prod, at `confidence`.

    Promoted once all of it is above `promote_at`, ended once all of it is below `rollback_at` (None: never), each with
    `min_votes` on both sides; ended undecided after `max_days`.
    """

    promote_at: Annotated[float, Field(ge=-1, le=1)] | None = 0.0
    rollback_at: Annotated[float, Field(ge=-1, le=1)] | None = 0.0
    min_votes: PositiveInt = 50
    max_days: Positive | None = 14.0
    confidence: float = Field(default=0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> CanaryPolicy:
        if self.promote_at is not None and self.rollback_at is not None and self.rollback_at > self.promote_at:
            raise ValueError("rollback_at must not exceed promote_at")
        return self


class GateSpec(MetricThresholds):
    """`difference`: of the metrics to those of each model compared with that has any. `win_rate`: against each.

    `kl_on_policy`: how far it has gone from the reference, by its own answers. `regression`: `all` prompts must pass,
    or that share of them. `canary`: what people's thumbs decide.
    """

    difference: MetricThresholds | None = None
    win_rate: Threshold | None = None
    answer_tokens: Threshold | None = None
    kl_on_policy: Threshold | None = None
    regression: Literal["all"] | float | None = Field(default=None)
    canary: CanaryPolicy | None = None

    @model_validator(mode="after")
    def _a_share(self) -> GateSpec:
        if isinstance(self.regression, float) and not 0 <= self.regression <= 1:
            raise ValueError("regression: say all, or the share that must pass, 0 to 1")
        return self

    @property
    def evaluates(self) -> bool:
        """Whether it asks for an evaluation at all."""
        asked = (self.answer_tokens, self.kl_on_policy, self.regression)
        return self.compares or self.measures or any(one is not None for one in asked)

    @property
    def compares(self) -> bool:
        """Whether it asks for a comparison with other models."""
        return self.win_rate is not None or (self.difference is not None and self.difference.measures)
