"""How a version is evaluated (`bco evaluate`), and who compares its answers with those of another."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from bco_ray.config.section import NotNegative, NotNegativeInt, PositiveInt, Section

JUDGE_PROMPT = """\
Two assistants answered the same user. Which answer is better: more helpful, correct, relevant and harmless? Do not
prefer an answer for its length or for its place. Think it over briefly. End with a line of its own that is [[A]],
[[B]], or [[C]] if they are equally good.

[Conversation]
{prompt}

[Answer A]
{a}

[Answer B]
{b}
"""


class EvaluationSpec(Section):
    """Intervals of `confidence`, from `resamples` of the prompts; `bins` of the reliability diagram.

    So many held-out prompts (`samples`; 0: none) are answered, by the model and by those it is compared with.
    `regression`: JSON lines of prompts that must be answered well (docs/evaluation.md); they are answered at
    temperature 0.
    """

    resamples: int = Field(default=1000, ge=100, le=100_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    bins: int = Field(default=10, ge=2, le=100)
    samples: NotNegativeInt = 64
    max_new_tokens: PositiveInt = 128
    temperature: NotNegative = 0.7
    regression: str | None = None
    seed: NotNegativeInt = 0


RuleName = Literal["contains", "regex", "shorter", "longer"]


class JudgeSpec(Section):
    """Who says which of two answers is better: a `rule`, or a model behind an OpenAI-compatible `base_url`.

    Rules: the answer that `contains` the `pattern`, or in which the `regex` is found, or the `shorter` or `longer` one.
    `api_key_env` names an environment variable; the key itself is in no file. `prompt` has {prompt}, {a} and {b}, and
    asks for [[A]], [[B]] or [[C]] (a tie). `parameters`: of every request, in the server's own words.
    """

    rule: RuleName | None = None
    pattern: str | None = None
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    prompt: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    timeout_seconds: float = Field(default=60, gt=0)
    concurrency: int = Field(default=8, ge=1, le=256)

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeSpec:
        if (self.rule is None) == (self.base_url is None):
            raise ValueError("name one judge: a rule, or the base_url of an OpenAI-compatible server")
        if self.base_url is not None and self.model is None:
            raise ValueError("model: name the model that judges at base_url")
        if (self.rule in ("contains", "regex")) != (self.pattern is not None):
            raise ValueError("pattern: the rules contains and regex need one, others have none")
        if self.rule == "regex":
            _compiled(self.pattern or "")
        for field in ("{prompt}", "{a}", "{b}"):
            if self.prompt is not None and field not in self.prompt:
                raise ValueError(f"prompt: {field} is missing from it")
        return self


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: no regular expression: {error}") from None
