"""From the notice to the drained node, with everything on the way going wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bco_ray.errors import ClusterError
from bco_ray.nodes import watch as watching
from bco_ray.nodes.notices import Amazon, Google, Notice
from bco_ray.nodes.watch import wait_for_end, watch
from bco_ray.telemetry import logger


class Cloud:
    """Says one thing after the other; an error is raised, and so is what is said of its presence."""

    def __init__(self, *says: Any, present: Any = True) -> None:
        self.says, self._present = list(says), [present] if not isinstance(present, list) else present

    def present(self) -> bool:
        return bool(said(self._present.pop(0) if len(self._present) > 1 else self._present[0]))

    def notice(self) -> Notice | None:
        found: Notice | None = said(self.says.pop(0))
        return found


def said(what: Any) -> Any:
    if isinstance(what, Exception):
        raise what
    return what


class Ray:
    def __init__(self, *fails: Exception) -> None:
        self.fails, self.heard = list(fails), list[tuple[str, float]]()

    def drain(self, because: str, seconds: float) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.heard.append((because, seconds))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=logger.name)
    yield caplog
    logger.removeHandler(caplog.handler)


def no_pause(seconds: float) -> None:
    assert seconds <= watching.POLL_SECONDS


def test_ray_hears_of_it_with_what_is_left_of_the_time() -> None:
    ray, notice = Ray(), Notice("EC2 will terminate it", time.time() + 90)
    assert watch([Cloud(None, None, notice)], ray.drain, no_pause) == notice
    ((because, seconds),) = ray.heard
    assert because == "EC2 will terminate it"
    assert 0 < seconds <= 90


def test_a_drain_that_fails_is_tried_until_it_is_heard() -> None:
    ray = Ray(*[ClusterError("no answer")] * 5)
    assert watch([Cloud(Notice("it goes", time.time() - 5))], ray.drain, no_pause)
    assert ray.heard == [("it goes", 0.0)]


def test_where_there_is_no_cloud_it_says_so_once_and_ends(lines: pytest.LogCaptureFixture) -> None:
    ray = Ray()
    assert watch([Cloud(present=False), Cloud(present=ClusterError("refused"))], ray.drain, no_pause) is None
    assert [record.message for record in lines.records] == [
        "no cloud's metadata server answers here: nobody would announce this machine's end."
    ]
    assert not ray.heard


def test_a_network_that_comes_up_late_is_waited_for() -> None:
    late = Cloud(Notice("it goes", time.time()), present=[ClusterError("no route"), False, True])
    assert watch([late], Ray().drain, no_pause)


def test_a_server_that_is_away_is_said_once_and_asked_again(lines: pytest.LogCaptureFixture) -> None:
    away = ClusterError("connection refused")
    watch([Cloud(away, away, None, away, Notice("it goes", time.time()))], Ray().drain, no_pause)
    assert sum("connection refused" in record.message for record in lines.records) == 2


@pytest.mark.parametrize(("still", "gone"), [([True, True, False], True), ([True] * 9, False)])
def test_a_node_ends_before_its_time_or_not(monkeypatch: pytest.MonkeyPatch, still: list[bool], gone: bool) -> None:
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])

    def pause(seconds: float) -> None:
        now[0] += seconds

    assert wait_for_end(lambda: still.pop(0), 5, pause) == gone


AMAZON = {
    "/latest/api/token": "",
    "/latest/meta-data/spot/instance-action": '{"action": "stop", "time": "2020-01-01T00:00:00Z"}',
}
GOOGLE = {"/computeMetadata/v1/instance/id": "1", "/computeMetadata/v1/instance/preempted": "TRUE"}


@pytest.mark.parametrize("pages", [AMAZON, GOOGLE], ids=["amazon", "google"])
def test_from_a_clouds_own_words(metadata: Any, pages: dict[str, str]) -> None:
    metadata.pages |= pages
    ray = Ray()
    assert watch([Google(), Amazon()], ray.drain, no_pause)
    assert len(ray.heard) == 1
