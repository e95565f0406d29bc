"""Looking at a job again and again: its events each once and in order, until something is so; its log as it is written.

A server that is away for a while (it is restarted) is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bco_ray.cli.job_client import FOLLOW_SECONDS, AwayError, JobServer, Patience, QuietError
from bco_ray.control.states import ENDED

Json = dict[str, Any]
Over = Callable[[Json], bool]
"""Is there nothing more to wait for?"""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _SLOWER = 1.0, 5.0, 1.25


class Events:
    """Of one job, each told once, however many pages they come in and whatever came in between."""

    def __init__(self, server: JobServer, job_id: str) -> None:
        self._server = server
        self._job_id = job_id
        self._newest: str | None = None

    def latest(self, most: int) -> list[Json]:
        """Up to so many of the newest, oldest first; `look` goes on from there."""
        return self._told(self._server.events(self._job_id, limit=most)["data"])

    def look(self) -> list[Json]:
        """Those that were not told yet, oldest first. An error in between loses none."""
        return self._told(list(self._unseen()))

    def _unseen(self) -> Iterator[Json]:
        """The newest first."""
        after, more = None, True
        while more:
            page = self._server.events(self._job_id, after)
            for event in page["data"]:
                if event["id"] == self._newest:
                    return
                yield event
            more = bool(page["has_more"] and page["data"])
            after = page["data"][-1]["id"] if more else None

    def _told(self, newest_first: list[Json]) -> list[Json]:
        if newest_first:
            self._newest = newest_first[0]["id"]
        return newest_first[::-1]


def all_events(server: JobServer, job_id: str) -> Json:
    """As one page, the newest first."""
    return {"object": "list", "data": Events(server, job_id).look()[::-1], "has_more": False}


def ended(job: Json) -> bool:
    """For good."""
    return job["status"] in ENDED


def off_cluster(job: Json) -> bool:
    """Ended or put aside, and gone: a status says only what is wanted."""
    return (ended(job) or job["status"] == "paused") and not job["status_details"]["on_cluster"]


def begun(job: Json) -> bool:
    """It does not wait for its turn any more."""
    return job["status"] not in {"validating_files", "queued"}


def follow(
    server: JobServer, job_id: str, over: Over, show: Callable[[Json, list[Json]], None], patience: Patience
) -> Json:
    """The job when it is `over`; `show(job, new events)` hears of every look. Slower where nothing happens."""
    events, pause, before = Events(server, job_id), _FIRST_PAUSE_SECONDS, None
    while True:
        job = patience(lambda: server.job(job_id))
        news = patience(events.look)
        show(job, news)
        if over(job):
            return job
        pause = _FIRST_PAUSE_SECONDS if news or job != before else min(_LONGEST_PAUSE_SECONDS, _SLOWER * pause)
        before = job
        time.sleep(pause)


def follow_events(server: JobServer, job_id: str, events: Events, patience: Patience) -> Iterator[Json]:
    """Those that are new to `events`, as they come, until the job has ended."""
    pause, over = 0.0, False
    while not over:
        time.sleep(pause)
        over = ended(patience(lambda: server.job(job_id)))
        news = patience(events.look)
        yield from news
        pause = (
            _FIRST_PAUSE_SECONDS if news else min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, _SLOWER * pause))
        )


def follow_log(server: JobServer, job_id: str, patience: Patience) -> Iterator[bytes]:
    """All of it, then what is added, until the job has ended. A connection that broke off is taken up where it was."""
    offset, over, failing_since = 0, False, None
    while not over:
        last = ended(patience(lambda: server.job(job_id)))
        try:
            for block in server.log(job_id, offset, follow=True):
                offset, failing_since = offset + len(block), None
                yield block
            over = last  # a stream that ended before the job did was cut off by somebody on the way
        except QuietError:
            failing_since = None
        except AwayError:
            failing_since = failing_since or time.monotonic()
            if time.monotonic() > failing_since + FOLLOW_SECONDS:
                raise
        if not over:
            time.sleep(_FIRST_PAUSE_SECONDS)
