"""Checkpoints of two workers (threads here): together or not at all, and never waiting for what will not come."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bco_ray.errors import StorageError, TrainingError
from bco_ray.objective import RewardShift
from bco_ray.storage.checkpoints import CheckpointStore, Keep
from bco_ray.storage.run_journal import RunJournal
from bco_ray.storage.stores import DirectoryStore
from bco_ray.testing.faulty_store import Fault, FaultyStore
from bco_ray.training import checkpoint
from bco_ray.training.attempt import Attempt, StaleAttemptError
from bco_ray.training.background import Backoff
from bco_ray.training.checkpoint import Checkpoints
from bco_ray.training.fragments import Fragment, SavedState
from bco_ray.training.loop_state import LoopState

SECONDS = 60
SHARE = "*-rank-00001-of-00002.safetensors"


class Threads:
    """A gang of threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._here = threading.Barrier(size, timeout=SECONDS)
        self._sent: list[Tensor] = [torch.zeros(0)] * size

    def of(self, rank: int) -> Member:
        return Member(self, rank)

    def sum(self, rank: int, tensor: Tensor) -> Tensor:
        self._sent[rank] = tensor
        self._here.wait()
        total = torch.stack(self._sent).sum(0)
        self._here.wait()
        return total


class Member:
    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self.rank, self.size = threads, rank, threads.size

    def sum(self, tensor: Tensor) -> Tensor:
        return self._threads.sum(self.rank, tensor)

    def barrier(self) -> None:
        self.sum(torch.zeros(1))


class Half:
    """An engine that holds one half of a parameter of four elements."""

    layout = "half"

    def __init__(self, rank: int) -> None:
        self.start = 2 * rank
        self.weights = torch.zeros(2)
        self.steps = 0

    def fragments(self) -> list[Fragment]:
        return [Fragment("w", self.start, {"weight": self.weights})]

    def restore(self, saved: SavedState, steps: int) -> None:
        self.weights, self.steps = saved.read("w", "weight", self.start, 2), steps

    def settle(self) -> None: ...


class Pair:
    """Two workers, their store and what they wrote down."""

    def __init__(self, run: Path) -> None:
        self.store = FaultyStore(DirectoryStore(run / "checkpoints"))
        self.journal = RunJournal(run)
        self.checkpoints = CheckpointStore(self.store)
        self.engines = [Half(0), Half(1)]
        self._run = run
        self._pool = ThreadPoolExecutor(2)
        self.begin()

    def begin(self, *, patience_seconds: float = SECONDS, **identity: Any) -> None:
        """A new attempt."""
        gang = Threads(2)
        backoff = Backoff(first_seconds=0.002, longest_seconds=0.01)

        def member(rank: int) -> Checkpoints:
            attempt = Attempt.begin(self._run, gang.of(rank), self.checkpoints)
            return Checkpoints(
                self.checkpoints, gang.of(rank), attempt, identity, keep=Keep(), journal=self.journal,
                backoff=backoff, patience_seconds=patience_seconds,
            )  # fmt: skip

        self.workers = self.both(member)

    def both(self, action: Callable[[int], Any]) -> list[Any]:
        """What it returns for both ranks, which call it at the same time."""
        futures: list[Future[Any]] = [self._pool.submit(action, rank) for rank in range(2)]
        return [future.result(SECONDS) for future in futures]

    def save(self, step: int, *, must: bool = False, alive: Callable[[], object] = lambda: None) -> list[bool]:
        """Both save what is `step` everywhere; whether they do."""
        state = LoopState(step, RewardShift(half_life_rows=30), skipped_steps=0, tokens_seen=7 * step)

        def save(rank: int) -> bool:
            self.engines[rank].weights = torch.full((2,), float(step))
            return self.workers[rank].save(self.engines[rank], state, {}, must=must, alive=alive)

        return self.both(save)

    def wait(self) -> list[bool]:
        return self.both(lambda rank: self.workers[rank].wait())

    def load(self) -> list[LoopState | None]:
        self.engines = [Half(0), Half(1)]
        return self.both(lambda rank: self.workers[rank].load_latest(self.engines[rank]))

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.journal.read() if event["event"] == kind]

    def close(self) -> None:
        self.store.heal()
        self._pool.shutdown()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.close()


def until(condition: Callable[[], object]) -> None:
    for _ in range(SECONDS * 500):
        if condition():
            return
        threading.Event().wait(0.002)
    raise AssertionError("it does not come")


def test_two_shares_make_one_checkpoint(pair: Pair) -> None:
    assert pair.load() == [None, None]
    assert pair.save(3) == [True, True]
    assert pair.wait() == [True, True]
    pair.begin()
    first, second = pair.load()
    assert first is not None
    assert (first, first.next_step, first.tokens_seen) == (second, 3, 21)
    assert [engine.steps for engine in pair.engines] == [3, 3]
    assert all(torch.equal(engine.weights, torch.full((2,), 3.0)) for engine in pair.engines)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_worker_cannot_write_both_give_up_for_a_newer_one(pair: Pair, rank: int) -> None:
    """The other may have been waiting for its mark, and would wait for ever."""
    pair.store.add(Fault("put", f"00000003/*-rank-0000{rank}-*.safetensors", times=None))
    pair.save(3)
    until(lambda: pair.events("checkpoint_failed"))
    until(lambda: ("put", f"00000003/a001-rank-0000{1 - rank}-of-00002.json") in pair.store.calls)
    until(lambda: pair.save(6) == [True, True])
    assert pair.wait() == [True, True]
    assert pair.checkpoints.steps() == [6]
    assert all(name.startswith("00000006/") for name in pair.store.sizes())
    assert {event["rank"] for event in pair.events("checkpoint_failed")} == {rank}


@pytest.mark.parametrize("rank", [0, 1])
def test_while_one_worker_is_busy_neither_begins(pair: Pair, rank: int) -> None:
    go = threading.Event()
    pair.store.add(Fault("put", f"*-rank-0000{rank}-*.safetensors", code=None, held=go))
    assert pair.save(3) == [True, True]
    assert pair.save(6) == [False, False]
    assert pair.save(9) == [False, False]
    go.set()
    assert pair.wait() == [True, True]
    assert pair.checkpoints.steps() == [3]
    assert [(event["step"], event["being_written"]) for event in pair.events("checkpoint_skipped")] == [(6, 3), (9, 3)]
    assert pair.save(12) == [True, True]
    assert pair.wait() == [True, True]
    assert pair.checkpoints.steps() == [3, 12]


def test_the_last_one_waits_for_the_one_before_and_shows_that_it_lives(pair: Pair) -> None:
    go, beats = threading.Event(), list[int]()

    def alive() -> None:
        beats.append(1)
        if len(beats) > 3:
            go.set()

    pair.store.add(Fault("put", SHARE, code=None, held=go))
    pair.save(3)
    assert pair.save(4, must=True, alive=alive) == [True, True]
    assert pair.wait() == [True, True]
    assert pair.checkpoints.steps() == [3, 4]
    assert len(beats) > 3


def test_the_last_one_does_not_wait_for_ever(pair: Pair) -> None:
    pair.begin(patience_seconds=0.05)
    pair.store.add(Fault("put", SHARE, code=None, held=threading.Event()))
    pair.save(3)
    assert pair.save(4, must=True) == [False, False]
    assert pair.wait() == [False, False]


def test_one_that_had_to_be_made_and_was_not_is_not_taken_for_the_one_before(pair: Pair) -> None:
    pair.begin(patience_seconds=0.05)
    go = threading.Event()
    pair.store.add(Fault("put", SHARE, code=None, held=go))
    pair.save(3)
    assert pair.save(4, must=True) == [False, False]
    go.set()
    until(lambda: pair.checkpoints.steps() == [3])
    assert pair.wait() == [False, False]


def test_a_try_that_goes_well_after_one_that_failed_is_not_given_up(pair: Pair) -> None:
    go = threading.Event()
    pair.store.add(Fault("put", SHARE))
    pair.save(3)
    until(lambda: pair.events("checkpoint_failed"))
    pair.store.add(Fault("put", SHARE, code=None, held=go))
    until(lambda: all(worker._writing.state == "working" or not worker._gang.rank for worker in pair.workers))
    go.set()
    assert pair.wait() == [True, True]
    assert pair.checkpoints.steps() == [3]


def test_what_a_writer_dies_of_is_heard_at_the_next_one(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the worker whose it is, before it talks to others: they would wait for its mark for ever."""

    def broken(*_: Any) -> None:
        raise ValueError("no such tensor")

    monkeypatch.setattr(checkpoint, "_save", broken)
    pair.save(3)
    until(lambda: pair.workers[1]._writing.state == "idle")
    state = LoopState(4, RewardShift(half_life_rows=30), skipped_steps=0, tokens_seen=0)
    with pytest.raises(ValueError, match="no such tensor"):
        pair.workers[1].save(pair.engines[1], state, {})


def test_another_attempt_takes_over(pair: Pair) -> None:
    """From one that still has a checkpoint to write: it commits nothing and removes nothing."""
    go = threading.Event()
    pair.store.add(Fault("put", SHARE, code=None, held=go))
    pair.save(3)
    old = pair.workers
    pair.begin()
    assert pair.load() == [None, None]
    pair.save(2)
    assert pair.wait() == [True, True]
    go.set()
    with pytest.raises(StaleAttemptError, match="attempt 2 has taken over from attempt 1"):
        old[0].wait()
    assert old[1].wait()
    assert pair.checkpoints.steps() == [2]
    assert pair.save(3) == [True, True]
    assert pair.wait() == [True, True]
    assert {name.split("-")[0] for name in pair.store.sizes("00000003")} == {"00000003/a002", "00000003/manifest.json"}


def test_damage_that_one_worker_finds_is_damage_for_both(pair: Pair) -> None:
    for step in (3, 6):
        pair.save(step)
        assert pair.wait() == [True, True]
    pair.store.inner.put("00000006/a001-rank-00001-of-00002.safetensors", lambda path: path.write_bytes(b"?") and None)
    pair.begin()
    states = pair.load()
    assert [state.next_step for state in states if state] == [3, 3]
    assert pair.checkpoints.steps() == [3]
    assert "00000006/manifest.json.damaged" in pair.store.sizes()
    assert [(event["step"], event["rank"]) for event in pair.events("checkpoint_damaged")] == [(6, 1)]


@pytest.mark.parametrize(("operation", "name"), [("local", SHARE), ("get", "*/manifest.json"), ("sizes", "")])
def test_what_one_worker_cannot_read_stops_both(pair: Pair, operation: str, name: str) -> None:
    pair.save(3)
    assert pair.wait() == [True, True]
    pair.begin(patience_seconds=0.05)
    before = pair.store.sizes()
    pair.store.add(Fault(operation, name, times=None, code=errno.EIO))
    for rank in range(2):
        pair.engines[rank].weights = torch.zeros(2)

    def load(rank: int) -> str:
        with pytest.raises(StorageError, match="the workers' logs say why") as caught:
            pair.workers[rank].load_latest(pair.engines[rank])
        return str(caught.value)

    assert len(set(pair.both(load))) == 1
    pair.store.heal()
    assert pair.store.sizes() == before
    assert [state.next_step for state in pair.load() if state] == [3, 3]


def test_a_checkpoint_of_something_else_is_refused_by_both(pair: Pair) -> None:
    pair.begin(run="mine", rows=120)
    pair.save(3)
    assert pair.wait() == [True, True]
    pair.begin(run="mine", rows=121)

    def load(rank: int) -> None:
        with pytest.raises(TrainingError, match="made with rows = 120, this run has 121"):
            pair.workers[rank].load_latest(pair.engines[rank])

    pair.both(load)
    assert pair.checkpoints.steps() == [3]
