"""Waiting for the notice, and for a node's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bco_ray.errors import ClusterError
from bco_ray.nodes.notices import Cloud, Notice, cloud_here
from bco_ray.telemetry import logger

POLL_SECONDS = 2.0
"""Google gives half a minute in all."""

TRIES = 5
"""A machine's network may be up later than this."""

Pause = Callable[[float], None]


def watch(clouds: Sequence[Cloud], drain: Callable[[str, float], None], pause: Pause = time.sleep) -> Notice | None:
    """Until Ray has heard of the machine's end by `drain(because, seconds)`; at once if no cloud could announce one.

    Trouble with either is said once, and again when it is another; neither ends the watch.
    """
    cloud = _find(clouds, pause)
    if cloud is None:
        logger.info("no cloud's metadata server answers here: nobody would announce this machine's end.")
        return None
    logger.info("waiting for %s's notice that this machine will be taken away", type(cloud).__name__)
    notice = _until_said(cloud, pause)
    logger.warning("%s in %.0f s: telling Ray", notice.what, notice.at - time.time())
    _until_heard(notice, drain, pause)
    logger.warning("Ray puts nothing new on this node; trainings stop with a checkpoint")
    return notice


def wait_for_end(runs: Callable[[], bool], seconds: float, pause: Pause = time.sleep) -> bool:
    """Whether a node that drains was gone before its time."""
    until = time.monotonic() + seconds
    while runs():
        if time.monotonic() >= until:
            return False
        pause(1.0)
    return True


def _find(clouds: Sequence[Cloud], pause: Pause) -> Cloud | None:
    for _ in range(TRIES):
        if (cloud := cloud_here(clouds)) is not None:
            return cloud
        pause(POLL_SECONDS)
    return None


def _until_said(cloud: Cloud, pause: Pause) -> Notice:
    trouble = _Trouble()
    while True:
        try:
            if (notice := cloud.notice()) is not None:
                return notice
            trouble.over()
        except ClusterError as error:
            trouble.say(str(error))
        pause(POLL_SECONDS)


def _until_heard(notice: Notice, drain: Callable[[str, float], None], pause: Pause) -> None:
    trouble = _Trouble()
    while True:
        try:
            drain(notice.what, max(0.0, notice.at - time.time()))
            return
        except ClusterError as error:
            trouble.say(str(error))
        pause(POLL_SECONDS)


class _Trouble:
    """What is the matter, said once."""

    def __init__(self) -> None:
        self._told = ""

    def say(self, what: str) -> None:
        if what != self._told:
            logger.warning("%s; tried again every %.0f s", what, POLL_SECONDS)
        self._told = what

    def over(self) -> None:
        self._told = ""
