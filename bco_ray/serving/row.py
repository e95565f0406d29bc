"""One request in the embedded engine: its tokens, its randomness, its text, and the way back to who asked.

V: vocabulary.
"""

from __future__ import annotations

import asyncio

from torch import Tensor

from bco_ray.serving.engine import GenRequest, RequestRefusedError, TokenEvent
from bco_ray.serving.sampling import pick, seeded
from bco_ray.serving.text_stream import TextStream


class Row:
    """One request on its way. Made on the caller's event loop, advanced by the engine's thread."""

    def __init__(self, request: GenRequest, text: TextStream, ends: frozenset[int]) -> None:
        self.ids = list(request.token_ids)
        self.events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self.cancelled = False
        self.done = False
        self._request = request
        self._text = text
        self._ends = ends
        self._generator = seeded(request.seed)
        self._loop = asyncio.get_running_loop()

    def advance(self, logits_V: Tensor, likeliest: int) -> bool:
        """Choose and send the next token; whether the row goes on."""
        if self.cancelled:
            self.done = True
            return False
        try:
            token = self._choose(logits_V, likeliest)
        except RuntimeError as error:
            self.fail(RequestRefusedError(f"sampling failed: {error}"))
            return False
        self.ids.append(token)
        event = self._event(token)
        self.done = event.finish_reason is not None
        self._send(event)
        return not self.done

    def fail(self, error: Exception) -> None:
        """End the row with an error, if it has not ended."""
        if not self.done:
            self.done = True
            self._send(error)

    def _choose(self, logits_V: Tensor, likeliest: int) -> int:
        r = self._request
        if r.temperature == 0:
            return likeliest
        return pick(logits_V, temperature=r.temperature, top_p=r.top_p, top_k=r.top_k, generator=self._generator)

    def _event(self, token: int) -> TokenEvent:
        if token in self._ends:
            return TokenEvent([token], self._text.flush(), "stop", ended=True)
        text = self._text.push(token)
        if self._text.stopped:
            return TokenEvent([token], text, "stop")
        if len(self.ids) - len(self._request.token_ids) >= self._request.max_new:
            return self._last(token, text + self._text.flush())
        return TokenEvent([token], text)

    def _last(self, token: int, text: str) -> TokenEvent:
        return TokenEvent([token], text, "stop" if self._text.stopped else "length")

    def _send(self, event: TokenEvent | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the caller's event loop is closed: nobody listens any more
            self.cancelled = True
