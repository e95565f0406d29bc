"""Prompts that every version must answer well: a JSON line each, and what the answer must (not) have in it.

{"name": "hours", "prompt": "When do you open?", "must_contain": "nine", "must_not_match": "(?i)as an ai"}
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from bco_ray.errors import SpecError
from bco_ray.schema import Message


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_one_or_many)]


class Case(BaseModel):
    """`prompt`: text or messages. `must_contain` takes text as it stands, `must_match` regular expressions."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    prompt: Annotated[list[Message], BeforeValidator(_as_messages), Field(min_length=1)]
    must_contain: Texts = Field(default_factory=list)
    must_not_contain: Texts = Field(default_factory=list)
    must_match: Texts = Field(default_factory=list)
    must_not_match: Texts = Field(default_factory=list)

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _expressions(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _asks_something(self) -> Case:
        if not [*self.must_contain, *self.must_not_contain, *self.must_match, *self.must_not_match]:
            raise ValueError("say what must, or must not, be in the answer: must_contain, must_match, must_not_...")
        return self

    def problems(self, answer: str) -> list[str]:
        """What is wrong with an answer; none: it passes."""
        return [
            *(f"lacks {text!r}" for text in self.must_contain if text not in answer),
            *(f"has {text!r}" for text in self.must_not_contain if text in answer),
            *(f"does not match {pattern!r}" for pattern in self.must_match if not re.search(pattern, answer)),
            *(f"matches {pattern!r}" for pattern in self.must_not_match if re.search(pattern, answer)),
        ]


def load_cases(path: Path) -> list[Case]:
    """Those of a file; one without a name is called by its line. Raises SpecError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"evaluation.regression: {path}: cannot be read: {error}.") from None
    cases = [_case(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not cases:
        raise SpecError(f"evaluation.regression: {path}: there is no prompt in it.")
    return cases


def _case(path: Path, number: int, line: str) -> Case:
    where = f"evaluation.regression: {path}:{number}"
    try:
        case = Case.model_validate(json.loads(line))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise SpecError(f"{where}: {f'{field}: ' if field else ''}{problem['msg']}.") from None
    except ValueError as error:
        raise SpecError(f"{where}: not JSON: {error}.") from None
    return case if case.name else case.model_copy(update={"name": f"line {number}"})
