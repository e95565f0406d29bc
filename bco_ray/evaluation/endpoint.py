"""A judge behind an OpenAI-compatible server."""

from __future__ import annotations

import os
import re
from typing import Any

import openai

from bco_ray.errors import ServingError, SpecError
from bco_ray.evaluation.judging import Verdict
from bco_ray.telemetry import logger

RETRIES = 3
"""Of the client, with growing pauses: what it still cannot say then is undecided."""

_MARK = re.compile(r"\[\[([ABC])\]\]")
_SAID: dict[str, Verdict] = {"A": "a", "B": "b", "C": "tie"}
_HOPELESS = (
    openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError,
    openai.UnprocessableEntityError,
)  # fmt: skip


class EndpointJudge:
    """Asks `model` at `base_url`; `api_key_env` names the environment variable with the key (None: no key)."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None,
        prompt: str,
        parameters: dict[str, Any],
        timeout_seconds: float,
    ) -> None:
        self.name = f"{model} at {base_url}"
        self._model = model
        self._prompt = prompt
        self._parameters = parameters
        self._client = openai.OpenAI(
            base_url=base_url, api_key=_key(api_key_env), timeout=timeout_seconds, max_retries=RETRIES
        )

    def compare(self, prompt: str, a: str, b: str) -> Verdict | None:
        """None if the server cannot be asked just now, or its answer has no mark.

        Raises ServingError for what would be refused again: a wrong key, model or parameter.
        """
        question = filled(self._prompt, prompt=prompt, a=a, b=b)
        try:
            reply = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": question}], extra_body=self._parameters
            )
        except _HOPELESS as error:
            raise ServingError(f"judge: {self.name} refuses: {_first_line(error)}") from None
        except openai.OpenAIError as error:
            logger.warning("judge: %s: %s", self.name, _first_line(error))
            return None
        return verdict_in(reply.choices[0].message.content if reply.choices else None)


def filled(template: str, **texts: str) -> str:
    """With {prompt}, {a} and {b} replaced at once: what an answer says of {b} stays as it is."""
    return re.sub(r"\{(prompt|a|b)\}", lambda match: texts[match[1]], template)


def verdict_in(said: str | None) -> Verdict | None:
    """By the last mark, [[A]], [[B]] or [[C]]: a judge may weigh them before it decides."""
    marks = _MARK.findall(said or "")
    return _SAID[marks[-1]] if marks else None


def _key(variable: str | None) -> str:
    if variable is None:
        return "none"
    if not (key := os.environ.get(variable)):
        raise SpecError(f"judge.api_key_env: the environment variable {variable} is not set here.")
    return key


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
