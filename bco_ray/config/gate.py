"""The policy of promotion: what a version's evaluation must say before `prod` may point at it.

A threshold is met by the cautious end of the interval unless `bound` says which: `min` by the lower end, `max` by the
upper one. What an evaluation does not tell (no held-out votes of a class, no judge) meets nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from bco_ray.config.section import Section

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


class GateSpec(MetricThresholds):
    """`difference`: of the metrics to those of each model compared with that has any. `win_rate`: against each.

    `regression`: `all` prompts must pass, or that share of them.
    """

    difference: MetricThresholds | None = None
    win_rate: Threshold | None = None
    answer_tokens: Threshold | None = None
    regression: Literal["all"] | float | None = Field(default=None)

    @model_validator(mode="after")
    def _a_share(self) -> GateSpec:
        if isinstance(self.regression, float) and not 0 <= self.regression <= 1:
            raise ValueError("regression: say all, or the share that must pass, 0 to 1")
        return self

    @property
    def compares(self) -> bool:
        """Whether it asks for a comparison with other models."""
        return self.difference is not None or self.win_rate is not None
