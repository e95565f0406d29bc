"""One conversation with a served model over HTTP: what was said, what the answers' ids are, and votes on them.

Nothing here reads or prints; `openai` is imported, so commands import this when they run.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from bco_ray.errors import ServingError

SOURCE = "bco chat"
_OF_REGISTRY = re.compile(r"(/[0-9]+|@[A-Za-z0-9_-]+)$")
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 600.0


class NoServerError(ServingError):
    """Nobody listens there."""


@dataclass
class Answer:
    """What came of one answer; not `whole`: it was stopped, or failed."""

    id: str = ""
    model: str = ""
    text: str = ""
    whole: bool = False


@dataclass
class Server:
    """A bco-ray server (or any that speaks OpenAI's chat), as the person `user`. All calls raise ServingError."""

    url: str
    key: str
    user: str

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix("/v1")
        timeout = openai.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        self._client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key or "none", timeout=timeout, max_retries=0
        )

    def names(self) -> list[str]:
        """What the models there are called."""
        with self._errors():
            return [model.id for model in self._client.models.list()]

    def check(self, name: str) -> None:
        """Raises ServingError, naming what there is, if no model is called so."""
        with self._errors():
            self._client.models.retrieve(name)

    def stream(self, body: dict[str, Any], answer: Answer, show: Callable[[str], None]) -> None:
        """Fill `answer` and show its text as it comes."""
        with self._errors(), self._client.chat.completions.create(**body, user=self.user, stream=True) as chunks:
            for chunk in chunks:
                answer.id, answer.model = chunk.id, chunk.model
                for choice in chunk.choices:
                    piece = choice.delta.content or ""
                    answer.text += piece
                    show(piece)
            answer.whole = True

    def vote(self, response_id: str, label: bool | None, comment: str) -> None:
        """Thumbs-up, thumbs-down, or (None) neither after all."""
        vote = {"response_id": response_id, "label": label, "user": self.user, "source": SOURCE}
        once = {"Idempotency-Key": uuid.uuid4().hex}
        with self._errors():
            body = {**vote, "comment": comment} if comment else vote
            self._client.post("/feedback", body=body, cast_to=object, options={"headers": once})

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except openai.APITimeoutError:
            raise ServingError(f"{self.url}: no answer in time.") from None
        except openai.APIConnectionError:
            raise NoServerError(f"{self.url}: no server answers there.") from None
        except openai.AuthenticationError as error:
            raise ServingError(f"{self.url}: {_message(error)} Set BCO_API_KEY to a key of this server.") from None
        except openai.APIError as error:
            raise ServingError(f"{self.url}: {_message(error)}") from None


@dataclass
class Conversation:
    """Turns so far; `model` and `sampling` hold for the next question."""

    server: Server
    model: str
    system: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    """The last question, after the turns it came after."""
    last: Answer | None = None
    voted: bool = False

    def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """Ctrl-C stops the answer; what came of it stays in the conversation. Raises ServingError."""
        self.asked = [*self.turns, {"role": "user", "content": question}]
        return self._answer(show)

    def retry(self, show: Callable[[str], None]) -> Answer:
        """Another answer to the last question, in place of the first if anything comes. Raises ServingError."""
        if not self.asked:
            raise ServingError("There is no question to ask again.")
        return self._answer(show)

    def _answer(self, show: Callable[[str], None]) -> Answer:
        answer, self.last, self.voted, asked = Answer(), None, False, self.asked
        messages = [{"role": "system", "content": self.system}, *asked] if self.system else asked
        try:
            self.server.stream({"model": self.model, "messages": messages, **self.sampling}, answer, show)
        except KeyboardInterrupt:
            pass
        finally:
            if answer.whole or answer.text:
                self.turns = [*asked, {"role": "assistant", "content": answer.text}]
            if answer.id:
                self.last = answer
        return answer

    def vote(self, label: bool, comment: str = "") -> None:
        """On the last answer; a second vote replaces the first. Raises ServingError."""
        self.server.vote(self._rated().id, label, comment)
        self.voted = True

    def undo(self) -> None:
        """Take the vote on the last answer back. Raises ServingError."""
        if not self.voted:
            raise ServingError("There is no vote on the last answer to take back.")
        self.server.vote(self._rated().id, None, "")
        self.voted = False

    def reset(self) -> None:
        """Begin anew."""
        self.turns, self.asked, self.last, self.voted = [], [], None, False

    def _rated(self) -> Answer:
        if self.last is None:
            raise ServingError("There is no answer to vote on yet.")
        return self.last


def choose(names: list[str]) -> str:
    """Where only one model is served, its bare name (prod and canary decide what that means), or its full id if that is
    none of the registry's (`org/model`). Raises ServingError.
    """
    bare = sorted({_OF_REGISTRY.sub("", name) for name in names})
    if len(bare) != 1:
        raise ServingError(f"Say which model with --model; served are: {', '.join(names) or 'none yet'}.")
    return bare[0]


def _message(error: openai.APIError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message
