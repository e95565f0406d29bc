"""One answer as it grows, whoever chooses its tokens: its text, and where it ends."""

from __future__ import annotations

from bco_ray.serving.engines.protocol import TokenEvent, TokenLogprob
from bco_ray.serving.engines.text_stream import TextStream


class Answer:
    """Makes events of sampled tokens. `ends`: the model's own end tokens; at most `max_new` tokens are taken."""

    def __init__(self, text: TextStream, ends: frozenset[int], max_new: int) -> None:
        self._text = text
        self._ends = ends
        self._left = max_new

    def add(self, token: int, logprobs: list[TokenLogprob], cached: int) -> TokenEvent:
        """The event of the next token; it has a finish reason if the answer ends with it."""
        self._left -= 1
        text, reason, ended = self._outcome(token)
        return TokenEvent([token], text, reason, ended, logprobs, cached)

    def _outcome(self, token: int) -> tuple[str, str | None, bool]:
        if token in self._ends:
            return self._text.flush(), "stop", True
        text = self._text.push(token)
        if self._text.stopped:
            return text, "stop", False
        if self._left > 0:
            return text, None, False
        text += self._text.flush()
        return text, "stop" if self._text.stopped else "length", False
