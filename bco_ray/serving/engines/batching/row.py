"""One request in the embedded engine: its tokens, its randomness, its text, and the way back to who asked.

B: rows, V: vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from math import isfinite

from torch import Tensor

from bco_ray.serving.engines.answer import Answer
from bco_ray.serving.engines.batching.sampling import Draw, logprobs, sample, seeded
from bco_ray.serving.engines.protocol import DeadlineError, GenRequest, RequestRefusedError, TokenEvent, TokenLogprob
from bco_ray.serving.engines.text_stream import TextStream

Event = TokenEvent | Exception


class Outbox:
    """Events on their way to the callers' event loops; one wake-up per loop and flush instead of one per event."""

    def __init__(self) -> None:
        self._held: dict[asyncio.AbstractEventLoop, list[tuple[Row, Event]]] = {}

    def post(self, row: Row, event: Event) -> None:
        """Have it delivered by the next flush."""
        self._held.setdefault(row.loop, []).append((row, event))

    def flush(self) -> None:
        """Deliver. Engine thread only."""
        held, self._held = self._held, {}
        for loop, events in held.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:  # the caller's event loop is closed: nobody listens any more
                continue


def _deliver(events: list[tuple[Row, Event]]) -> None:
    for row, event in events:
        row.events.put_nowait(event)
        if not isinstance(event, TokenEvent) or event.finish_reason is not None:
            row.ended.set()


class Row:
    """One request on its way. Made on the caller's event loop, advanced by the engine's thread.

    `ids`: the prompt and what was generated; the last one is what the model has not read yet. `keys`: the digests of
    the prompt's blocks (see prefix_cache). `alone`: it was there when a batch failed, and is read by itself now.
    `finished`: `done`, and with its last token. `ended` is set once the last event is among the `events`.
    """

    def __init__(self, request: GenRequest, text: TextStream, ends: frozenset[int], outbox: Outbox) -> None:
        self.request = request
        self.ids = list(request.token_ids)
        self.keys: list[bytes] = []
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.cancelled = False
        self.done = self.finished = False
        self.alone = False
        self.cached: int | None = None
        self._answer = Answer(text, ends, request.max_new)
        self._random = seeded(request.seed)
        self._outbox = outbox

    @property
    def adapter(self) -> str | None:
        """The name of the adapter it asks for."""
        return self.request.adapter.name if self.request.adapter else None

    @property
    def most(self) -> int:
        """Tokens it can come to."""
        return len(self.request.token_ids) + self.request.max_new

    def lost(self, now: float) -> bool:
        """Whether nobody waits for it any more: it has ended, was cancelled, or its deadline (unix seconds) is over."""
        if self.cancelled:
            self.done = True
        elif self.request.deadline is not None and now >= self.request.deadline:
            self.fail(DeadlineError("the answer was not done by its deadline"))
        return self.done

    def draw(self) -> Draw:
        """How its next token is sampled; takes a number from its randomness."""
        r = self.request
        return Draw(r.temperature, r.top_p, r.top_k, self._random.random())

    def push(self, token: int, logprob: TokenLogprob | None) -> None:
        """Send the next token."""
        first = len(self.ids) == len(self.request.token_ids)
        self.ids.append(token)
        event = self._answer.add(token, [logprob] if logprob else [], (self.cached or 0) if first else 0)
        self.done = self.finished = event.finish_reason is not None
        self._outbox.post(self, event)

    def fail(self, error: Exception) -> None:
        """End the row with an error, if it has not ended."""
        if not self.done:
            self.done = True
            self._outbox.post(self, error)


def advance(rows: Sequence[Row], logits_BV: Tensor) -> list[int]:
    """Choose and send the next token of every row that goes on; which rows have logits that are numbers.

    The others fail, and nobody else notices.
    """
    best_B, likeliest_B = (values.tolist() for values in logits_BV.max(-1))  # a NaN is the largest of its row
    sound = [b for b, best in enumerate(best_B) if isfinite(best)]
    for b in set(range(len(rows))) - set(sound):
        rows[b].fail(RequestRefusedError("the model's output for this request is not finite"))
    going = [b for b in sound if not rows[b].done]
    tokens = {b: likeliest_B[b] for b in going}
    sampled = [b for b in going if rows[b].request.temperature > 0]
    if sampled:
        drawn = sample(_rows_of(logits_BV, sampled), [rows[b].draw() for b in sampled])
        tokens.update(zip(sampled, drawn, strict=True))
    found = _logprobs(rows, logits_BV, tokens)
    for b, token in tokens.items():
        rows[b].push(token, found.get(b))
    return sound


def _logprobs(rows: Sequence[Row], logits_BV: Tensor, tokens: Mapping[int, int]) -> dict[int, TokenLogprob]:
    """Of the rows that ask for them, by their place."""
    top = {b: k for b in tokens if (k := rows[b].request.logprobs) is not None}
    if not top:
        return {}
    entries = logprobs(_rows_of(logits_BV, list(top)), [tokens[b] for b in top], list(top.values()))
    return dict(zip(top, entries, strict=True))


def _rows_of(logits_BV: Tensor, rows: list[int]) -> Tensor:
    return logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
