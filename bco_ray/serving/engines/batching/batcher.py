"""The continuous batcher: one turn steps who runs, takes in who waits, and reads a piece of the newcomers' prompts.

It knows nothing of threads and event loops. One thread calls it; others may only put rows into `waiting`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from bco_ray.serving.engines.batching.adapters import Adapters
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.batching.prefill import Prefill, together
from bco_ray.serving.engines.batching.prefix_cache import PrefixCache
from bco_ray.serving.engines.batching.row import Row, advance
from bco_ray.serving.engines.batching.waiting import FairQueue
from bco_ray.serving.engines.protocol import RequestRefusedError
from bco_ray.telemetry import logger

_MODEL_ERRORS = (RuntimeError, ValueError, IndexError, MemoryError)


class Batcher:
    """`running` rows step together; `reading` ones are being read; `admitted` ones have a slot and come next.

    At most `max_batch` rows have a slot, and rows x the longest they can become is at most `kv_tokens`. `failures`
    counts requests in a row that failed inside the model.
    """

    def __init__(
        self,
        network: Network,
        adapters: Adapters,
        waiting: FairQueue,
        *,
        max_batch: int,
        kv_tokens: int,
        prefill_chunk: int,
        prefix_tokens: int,
    ) -> None:
        self.running: list[Row] = []
        self.reading: Prefill | None = None
        self.admitted: list[Row] = []
        self.failures = self.prompt_tokens = self.cached_tokens = 0
        self._network = network
        self._adapters = adapters
        self._waiting = waiting
        self._new_cache = partial(network.cache, max_rows=max_batch, budget=kv_tokens)
        self._cache = self._new_cache()
        self._prefixes = PrefixCache(prefix_tokens)
        self._max_batch = max_batch
        self._kv_tokens = kv_tokens
        self._prefill_chunk = prefill_chunk

    @property
    def rows(self) -> list[Row]:
        """All that have a slot."""
        rows = [*self.running, *(self.reading.rows if self.reading else []), *self.admitted]
        return list(dict.fromkeys(rows))  # those that join are in two places for a moment

    @property
    def held_tokens(self) -> int:
        """Tokens in the running batch's cache."""
        return sum(self._cache.lengths)

    def turn(self) -> bool:
        """One step; whether there is more to do. Reading comes last: a first token waits for no further step."""
        self._drop_lost()
        self._step()
        self._admit()
        self._read()
        return bool(self.rows) or len(self._waiting) > 0

    def _drop_lost(self) -> None:
        now = time.time()
        self._waiting.sweep(lambda row: row.lost(now))
        gone = {row for row in self.rows if row.lost(now)}
        self.admitted = [row for row in self.admitted if row not in gone]
        if self.reading and gone.issuperset(self.reading.rows):
            self.reading = None
        self._drop_done()

    def _admit(self) -> None:
        rows = self.rows
        shares = Counter(row.request.share for row in rows)
        longest = max((row.most for row in rows), default=0)
        while len(rows) < self._max_batch:
            budget = self._kv_tokens // (len(rows) + 1)
            row = self._waiting.take(shares, lambda row: max(row.most, longest) <= budget)  # noqa: B023 - called at once
            if row is None:
                return
            rows.append(row)
            self.admitted.append(row)
            shares[row.request.share] += 1
            longest = max(longest, row.most)

    def _read(self) -> None:
        if not self.reading and not self.admitted:
            return
        rows = self.reading.rows if self.reading else together(self.admitted, self._prefixes, self._prefill_chunk)
        try:
            self._read_piece(rows)
        except _MODEL_ERRORS as error:
            self.reading = None
            self.admitted = [row for row in self.admitted if row not in rows]
            self._sort_out([row for row in rows if not row.done], error)

    def _read_piece(self, rows: list[Row]) -> None:
        if not self.reading:
            self.reading = Prefill(self._network, self._prefixes, rows)
            self.admitted = [row for row in self.admitted if row not in rows]
            self._count(self.reading)
        with self._adapters.of(rows):
            logits_BV = self.reading.read(self._prefill_chunk)
        if logits_BV is not None:
            self._join(self.reading, advance(rows, logits_BV))
            self.reading = None

    def _count(self, reading: Prefill) -> None:
        for row, known in zip(reading.rows, reading.known, strict=True):
            if row.cached is None:  # not where it is read again after a failure
                row.cached = known
                self.prompt_tokens += len(row.request.token_ids)
                self.cached_tokens += known

    def _join(self, read: Prefill, sound: list[int]) -> None:
        """Rows that have ended go in too: they leave their prompt to those who ask the same."""
        self._judge(len(sound), len(read.rows))
        if not sound:
            return
        first = len(self.running)
        self.running += [read.rows[b] for b in sound]
        try:
            self._cache.take(read.cache, [(b, read.spans(b)) for b in sound])
        except _MODEL_ERRORS as error:
            self._fall_apart(error)
            return
        for place, row in enumerate(self.running[first:], start=first):
            row.alone = False
            self._remember(row, place)
        self._drop_done()

    def _remember(self, row: Row, place: int) -> None:
        try:
            self._prefixes.keep(row.keys, self._cache, place)
        except _MODEL_ERRORS as error:  # nobody's answer depends on it
            logger.warning("no memory to remember prompts, so they are forgotten: %s", error)

    def _judge(self, sound: int, rows: int) -> None:
        """A network that gives no numbers for anybody, turn after turn, is broken."""
        if not sound:
            self.failures += rows

    def _step(self) -> None:
        if not self.running:
            return
        try:
            with self._adapters.of(self.running):
                logits_BV = self._network.logits([row.ids[-1:] for row in self.running], self._cache)
            sound = advance(self.running, logits_BV)
        except _MODEL_ERRORS as error:
            self._fall_apart(error)
            return
        if sound:
            self.failures = 0
        self._judge(len(sound), len(self.running))
        self._drop_done()

    def _drop_done(self) -> None:
        for place in reversed(range(len(self.running))):
            if self.running[place].done:
                self.failures = 0 if self.running[place].finished else self.failures
                self._cache.leave(place)
                last = self.running.pop()
                if place < len(self.running):
                    self.running[place] = last

    def _fall_apart(self, error: Exception) -> None:
        """The batch failed: who is guilty shows when its rows are read again one by one."""
        suspects = [row for row in self.running if not row.done]
        self.running = []
        self._cache = self._new_cache()  # the old one may have lost its memory half-way
        self._sort_out(suspects, error)

    def _sort_out(self, suspects: Sequence[Row], error: Exception) -> None:
        if len(suspects) == 1:
            self._blame(suspects[0], error)
            return
        for row in suspects:
            row.alone = True
        self.admitted = [*suspects, *self.admitted]

    def _blame(self, row: Row, error: Exception) -> None:
        logger.warning("a request failed inside the model: %s", error)
        self.failures += 1
        row.fail(RequestRefusedError(f"the model failed on this request: {error}"))
