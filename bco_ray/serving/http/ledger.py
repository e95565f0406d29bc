"""What a gateway writes to the feedback log: whatever waits is written together, and answered once it is on disk.

One transaction at a time. While it is written the next batch gathers, so that many callers share one flush of the disk
and a single one never waits for company.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from bco_ray.errors import StorageError
from bco_ray.storage.feedback_log import Added, Ballot, Completion, FeedbackLog, Vote, VoteEvent
from bco_ray.storage.retention import forget_older
from bco_ray.telemetry import logger

BATCH_VOTES = 500
UNFINISHED_SECONDS = 30.0
"""How long votes wait for the answers they are about to be in the log."""

DAY_SECONDS = 86400.0
SWEEP_SECONDS = 3600.0

Outcomes = list[Added | StorageError]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Batch:
    answers: list[Completion] = field(default_factory=list)
    ballots: list[Ballot] = field(default_factory=list)
    written: asyncio.Task[Outcomes] = field(init=False)


class Ledger:
    """For one event loop; writes in a thread that nobody else can occupy. `retention_days`: answers older than that
    take no votes, and `sweep` empties them.
    """

    def __init__(self, log: FeedbackLog, retention_days: float | None = None) -> None:
        self.log = log
        self._retention_days = retention_days
        self._writer = ThreadPoolExecutor(1, "ledger")
        self._turn = asyncio.Lock()
        self._gathering: _Batch | None = None
        self._unfinished: dict[str, asyncio.Event] = {}

    async def close(self) -> None:
        """Once what was handed in is written. Nothing may be handed in afterwards."""
        if batch := self._gathering:
            await asyncio.wait([batch.written])
        async with self._turn:
            self._writer.shutdown(wait=False)

    @contextmanager
    def unfinished(self, answer_id: str) -> Iterator[None]:
        """While a client can see an answer that is not in the log yet: votes on it wait for `answered`."""
        seen = self._unfinished[answer_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._unfinished[answer_id]
            seen.set()

    def answered(self, completion: Completion) -> Awaitable[object]:
        """Hand in an answer. It will be written whether or not the caller waits; votes from now on find it."""
        batch = self._batch()
        batch.answers.append(completion)
        if seen := self._unfinished.get(completion.id):
            seen.set()
        return asyncio.shield(batch.written)

    async def vote(self, vote: Vote, key: str | None) -> Added:
        """See `FeedbackLog.add_vote`; ExpiredError for an answer that is too old."""
        await self._answered_soon([vote])
        batch = self._batch()
        batch.ballots.append((vote, key))
        place = len(batch.ballots) - 1
        outcome = (await asyncio.shield(batch.written))[place]
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    async def vote_all(self, ballots: Sequence[Ballot]) -> Outcomes:
        """Many votes of one caller, in transactions of moderate size that take turns with everybody else's."""
        await self._answered_soon([vote for vote, _ in ballots])
        outcomes = Outcomes()
        for at in range(0, len(ballots), BATCH_VOTES):
            batch = _Batch(ballots=list(ballots[at : at + BATCH_VOTES]))
            outcomes += await asyncio.shield(
                asyncio.create_task(self._write(batch))
            )  # behind what was handed in before
        return outcomes

    async def withdraw(self, vote_id: str) -> VoteEvent | None:
        """See `FeedbackLog.delete_vote`."""
        async with self._turn:
            return await self._in_writer(self.log.delete_vote, vote_id, oldest=self._oldest)

    async def sweep(self) -> None:
        """For as long as the server runs: empty what has become too old, now and every hour."""
        while self._retention_days is not None:
            try:
                forgotten = await asyncio.to_thread(forget_older, self.log, self._oldest)
                if forgotten:
                    logger.info("%d answers older than %g days were emptied", forgotten, self._retention_days)
            except StorageError as error:
                logger.error("old answers cannot be emptied now: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    @property
    def _oldest(self) -> float:
        return 0.0 if self._retention_days is None else time.time() - self._retention_days * DAY_SECONDS

    async def _answered_soon(self, votes: Sequence[Vote]) -> None:
        """Wait, not for ever, for the answers among theirs that are still on their way."""
        waiting = [self._unfinished[name] for name in {vote.response_id for vote in votes} & self._unfinished.keys()]
        if not waiting:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(UNFINISHED_SECONDS):
                for seen in waiting:
                    await seen.wait()

    def _batch(self) -> _Batch:
        batch = self._gathering
        if batch is None or len(batch.ballots) + len(batch.answers) >= BATCH_VOTES:
            batch = self._gathering = _Batch()
            batch.written = asyncio.create_task(self._write(batch))
        return batch

    async def _write(self, batch: _Batch) -> Outcomes:
        async with self._turn:
            if self._gathering is batch:
                self._gathering = None
            return await self._in_writer(self.log.add_all, batch.answers, batch.ballots, oldest=self._oldest)

    async def _in_writer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, partial(work, *args, **kwargs))
