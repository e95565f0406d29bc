"""What runs beside the training: tried again while storage fails, replaced when there is something newer, heard when it
breaks."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

import pytest

from bco_ray.errors import StorageError, TrainingError
from bco_ray.storage.checkpoints import DamagedError
from bco_ray.training.background import Abandoned, Backoff, Persistent, insist

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.01)
NEVER_AGAIN = Backoff(first_seconds=3600, longest_seconds=3600)
SECONDS = 30


class Trouble:
    """What was said of failures."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float]] = []
        self.came = threading.Event()

    def __call__(self, error: Exception, seconds: float) -> None:
        self.heard.append((str(error), seconds))
        self.came.set()


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


def failing(times: int, error: Exception, done: list[str]) -> Callable[[Abandoned], None]:
    """A task that fails so often and then succeeds."""
    left = [error] * times

    def task(_: Abandoned) -> None:
        if left:
            raise left.pop()
        done.append("done")

    return task


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_seconds=1, longest_seconds=60)
    assert [backoff.after(failures) for failures in (1, 2, 3, 6, 7, 8, 10**6)] == [1, 2, 4, 32, 60, 60, 60]


class TestPersistent:
    @pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), StorageError("no store")])
    def test_failures_of_storage_are_tried_again(self, trouble: Trouble, error: Exception) -> None:
        writing, done = Persistent(QUICK, trouble), list[str]()
        writing.start(failing(5, error, done))
        assert writing.wait(SECONDS)
        assert done == ["done"]
        assert [seconds for _, seconds in trouble.heard] == [QUICK.after(n) for n in range(1, 6)]
        assert {text for text, _ in trouble.heard} == {str(error)}
        assert writing.state == "idle"

    def test_states(self, trouble: Trouble) -> None:
        writing, go = Persistent(NEVER_AGAIN, trouble), threading.Event()

        def task(_: Abandoned) -> None:
            go.wait(SECONDS)
            raise OSError(errno.ENOSPC, "No space left on device")

        assert writing.state == "idle"
        writing.start(task)
        assert writing.state == "working"
        assert not writing.wait(0.001)
        go.set()
        assert until(lambda: writing.state == "failing")
        assert writing.abandon(SECONDS)
        assert writing.state == "idle"

    def test_one_that_fails_can_be_given_up_for_another(self, trouble: Trouble) -> None:
        """Although its next try would be an hour away."""
        writing, done = Persistent(NEVER_AGAIN, trouble), list[str]()
        writing.start(failing(10**6, OSError("down"), done))
        assert trouble.came.wait(SECONDS)
        assert writing.abandon(SECONDS)
        writing.start(failing(0, OSError("up"), done))
        assert writing.wait(SECONDS)
        assert done == ["done"]
        assert len(trouble.heard) == 1

    def test_one_that_works_is_told_that_it_was_given_up(self, trouble: Trouble) -> None:
        writing, told = Persistent(QUICK, trouble), threading.Event()

        def task(abandoned: Abandoned) -> None:
            assert until(abandoned)
            told.set()

        writing.start(task)
        assert writing.abandon(SECONDS)
        assert told.is_set()

    def test_one_that_does_not_listen_is_not_waited_for(self, trouble: Trouble) -> None:
        writing, go = Persistent(QUICK, trouble), threading.Event()
        writing.start(lambda _: go.wait(SECONDS) and None)
        assert not writing.abandon(0.001)
        go.set()
        assert writing.wait(SECONDS)

    @pytest.mark.parametrize("call", ["start", "wait", "abandon"])
    def test_another_error_comes_out_of_the_next_call_once(self, trouble: Trouble, call: str) -> None:
        writing, done = Persistent(QUICK, trouble), list[str]()
        calls = {
            "start": lambda: writing.start(failing(0, OSError(), done)),
            "wait": lambda: writing.wait(SECONDS),
            "abandon": lambda: writing.abandon(SECONDS),
        }
        writing.start(failing(1, TrainingError("taken over"), done))
        assert until(lambda: writing.state == "idle")
        with pytest.raises(TrainingError, match="taken over"):
            calls[call]()
        assert done == []
        calls[call]()
        assert writing.wait(SECONDS)
        assert trouble.heard == []


class TestInsist:
    def test_it_returns_what_comes_in_the_end(self, trouble: Trouble) -> None:
        errors: list[Exception] = [OSError("first"), StorageError("second")]

        def action() -> int:
            if errors:
                raise errors.pop(0)
            return 7

        assert insist(action, QUICK, seconds=SECONDS, on_failure=trouble) == 7
        assert trouble.heard == [("first", QUICK.after(1)), ("second", QUICK.after(2))]

    def test_its_patience_ends_with_the_last_error(self, trouble: Trouble) -> None:
        def action() -> int:
            raise OSError(errno.EIO, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            insist(action, QUICK, seconds=0.03, on_failure=trouble)
        assert trouble.heard
        with pytest.raises(OSError, match="Input/output"):
            insist(action, NEVER_AGAIN, seconds=SECONDS, on_failure=trouble)

    @pytest.mark.parametrize("error", [DamagedError("torn"), TrainingError("refused"), ValueError("a bug")])
    def test_what_is_no_failure_of_storage_comes_out_at_once(self, trouble: Trouble, error: Exception) -> None:
        def action() -> int:
            raise error

        with pytest.raises(type(error)):
            insist(action, QUICK, seconds=SECONDS, on_failure=trouble)
        assert trouble.heard == []
