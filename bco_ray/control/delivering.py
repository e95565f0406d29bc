"""Sends what webhooks are to be told: signed, again and again until it is accepted or has been tried long enough.

At least once: a sender that ends between an answer and its record leaves the delivery to be sent again, so receivers
go by `webhook-id`, which stays the same. Several servers may send from one database: one of them makes each attempt.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus

from standardwebhooks import Webhook

from bco_ray.control.webhooks import Outcome, Taken, WebhookStore
from bco_ray.errors import BcoError, StorageError
from bco_ray.telemetry import logger

RETRY_SECONDS: Sequence[float] = (5, 30, 2 * 60, 10 * 60, 3600, 5 * 3600, 10 * 3600, 10 * 3600)
"""After each failure until the next attempt; after the last of them it is given up."""
JITTER = 0.2
AT_ONCE = 8
LEASE_SECONDS = 60.0
"""How long an attempt belongs to who took it: longer than any answer is waited for."""
POLL_SECONDS = 1.0

_TRIES = len(RETRY_SECONDS) + 1
_MAX_ERROR = 500

Send = Callable[[str, str, Mapping[str, str]], Awaitable[int]]
"""`send(url, body, headers)`: the status of the answer. Raises BcoError if there is none."""


class Deliverer:
    """At most `AT_ONCE` deliveries at a time and one per webhook, so that a slow endpoint holds up only itself.

    `chance` gives numbers from 0 to 1; `told` hears of every attempt.
    """

    def __init__(
        self,
        store: WebhookStore,
        send: Send,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        told: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._send = send
        self._clock = clock
        self._chance = chance
        self._told = told
        self._busy = dict[str, asyncio.Task[None]]()

    async def run(self) -> None:
        """Until cancelled; what is on its way then is sent again later, by whoever runs."""
        try:
            while True:
                await self._start_what_can()
                await self._rest()
        finally:
            await self._let_go()

    async def run_once(self, now: float) -> None:
        """Attempt everything that is due at `now` (unix seconds), and wait for the answers."""
        while tasks := await self._start(now):
            await asyncio.wait(tasks)

    async def _start_what_can(self) -> None:
        try:
            await self._start(self._clock())
        except StorageError as error:
            logger.error("webhook deliveries wait for the database: %s", error)

    async def _let_go(self) -> None:
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rest(self) -> None:
        """A while, or until there is room for more."""
        if self._busy:
            await asyncio.wait(self._busy.values(), timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(POLL_SECONDS)

    async def _start(self, now: float) -> Sequence[asyncio.Task[None]]:
        room = AT_ONCE - len(self._busy)
        if not room:
            return []
        until, busy = now + LEASE_SECONDS, list(self._busy)
        taken = await asyncio.to_thread(self._store.take, now, until=until, most=room, busy=busy, tries=_TRIES)
        return [self._begin(delivery, now) for delivery in taken]

    def _begin(self, delivery: Taken, now: float) -> asyncio.Task[None]:
        task = asyncio.create_task(self._attempt(delivery, now))
        self._busy[delivery.webhook_id] = task
        task.add_done_callback(lambda done: self._ended(delivery, done))
        return task

    def _ended(self, delivery: Taken, task: asyncio.Task[None]) -> None:
        """An attempt that broke on our side stays unrecorded: it is due again when its lease is over."""
        del self._busy[delivery.webhook_id]
        if not task.cancelled() and (error := task.exception()):
            logger.error("webhook delivery %s: %s", delivery.id, error, exc_info=error)

    async def _attempt(self, delivery: Taken, now: float) -> None:
        began = time.monotonic()
        status, error = await self._answer(delivery, now)
        outcome = self._outcome(delivery, status, error, now + time.monotonic() - began)
        await asyncio.to_thread(self._store.record, delivery, outcome)
        self._told(outcome)

    async def _answer(self, delivery: Taken, now: float) -> tuple[int | None, str | None]:
        """The status, and what is wrong with it."""
        try:
            status = await self._send(delivery.url, delivery.payload, signed_headers(delivery, now))
        except BcoError as error:
            return None, str(error)[:_MAX_ERROR]
        return status, None if 200 <= status < 300 else f"the endpoint answered {status}, not 2xx"

    def _outcome(self, delivery: Taken, status: int | None, error: str | None, now: float) -> Outcome:
        if error is None:
            return Outcome(status, None, delivered_at=now, next_at=None)
        if status == HTTPStatus.GONE:
            return Outcome(status, "the endpoint answered 410: gone", delivered_at=None, next_at=None)
        return Outcome(status, error, delivered_at=None, next_at=self._next_at(delivery.attempts, now))

    def _next_at(self, attempts: int, now: float) -> float | None:
        """None: tried often enough."""
        if attempts >= _TRIES:
            return None
        return now + RETRY_SECONDS[attempts - 1] * (1 + JITTER * (2 * self._chance() - 1))


def signed_headers(delivery: Taken, now: float) -> Mapping[str, str]:
    """As https://www.standardwebhooks.com says; the time is that of this attempt."""
    at = datetime.fromtimestamp(int(now), UTC)
    return {
        "content-type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": Webhook(delivery.secret).sign(delivery.id, at, delivery.payload),
    }
