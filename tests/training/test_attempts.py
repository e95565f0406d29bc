"""A run as attempts: retried, resized, stopped and given up, with groups that only pretend to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bco_ray.errors import TrainingError
from bco_ray.storage.run_journal import RunJournal
from bco_ray.training import attempts, stopping
from bco_ray.training.attempts import Attempts, Failed, Finished, Limits
from bco_ray.training.failures import RETRY_SECONDS, Symptom
from bco_ray.training.setup import TrainSetup

DONE = Finished({"next_step": 20})
STOPPED = Finished({"next_step": 7}, stopped=True)
LOST = Failed((Symptom("", "its process is gone", 1, kind="lost"),))
NO_ROOM = Failed((Symptom("WorkerGroupStartupTimeoutError", "no place", kind="no_room"),))
MEMORY = Failed((Symptom("OutOfMemoryError", "CUDA out of memory", 0),))


@dataclass
class Group:
    """Ends as it was told. `does`: what happens while somebody waits, one after the other; `last`: at its end."""

    ends: Finished | Failed
    does: list[Callable[[], None]] = field(default_factory=list)
    last: Callable[[], None] = lambda: None
    waited: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        if self.does:
            self.does.pop(0)()
            return False
        self.last()
        return True

    def result(self) -> Finished | Failed:
        return self.ends


class Cluster:
    """Starts what is on its list, has `room`, and remembers what was asked of it."""

    def __init__(self, setup: TrainSetup) -> None:
        self.setup = setup
        self.run = Path(setup.run)
        self.journal = RunJournal(self.run)
        self.groups: list[Group] = []
        self.room = 0
        self.started: list[tuple[int, int]] = []
        """(workers, max_tokens_per_micro_batch) of each."""
        self.paused: list[float] = []
        self.asked: list[int] = []

    def plan(self, *groups: Group | Finished | Failed) -> None:
        self.groups += [group if isinstance(group, Group) else Group(group) for group in groups]

    def start(self, setup: TrainSetup, workers: int) -> Group:
        assert not (self.run / stopping.FILE).exists()
        self.started.append((workers, setup.max_tokens_per_micro_batch))
        return self.groups.pop(0)

    def train(self, *, least: int = 2, most: int = 2, max_failures: int = 2) -> dict[str, Any]:
        limits = Limits(least, most, max_failures, resize_seconds=-1)
        run = Attempts(self.setup, limits, self.start, lambda: self.room, self.paused.append, self.asked.append)
        return run.run()

    def says(self, event: str, **facts: Any) -> Callable[[], None]:
        """A worker writes that down."""
        return lambda: self.journal.write(event, **facts)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.journal.read() if event["event"] in kinds]

    @property
    def workers(self) -> list[int]:
        return [workers for workers, _ in self.started]


@pytest.fixture
def cluster(make_setup: Callable[..., TrainSetup], request: pytest.FixtureRequest) -> Cluster:
    return Cluster(make_setup("".join(c if c.isalnum() else "-" for c in request.node.name)))


def test_one_that_goes_well(cluster: Cluster) -> None:
    cluster.plan(DONE)
    assert cluster.train() == {"next_step": 20}
    assert cluster.workers == [2]
    assert [e["event"] for e in cluster.journal.read() if e["event"] != "waiting"] == ["attempt", "finished"]


def test_one_that_has_no_place_says_so(cluster: Cluster) -> None:
    cluster.room = 1
    cluster.plan(DONE)
    cluster.train(least=2)
    (event,) = cluster.events("waiting")
    assert (event["workers"], event["room"]) == (2, 1)


def test_failures_are_tried_again_after_longer_and_longer_pauses(cluster: Cluster) -> None:
    cluster.plan(LOST, LOST, DONE)
    assert cluster.train() == {"next_step": 20}
    assert cluster.paused == [RETRY_SECONDS, 2 * RETRY_SECONDS]
    failed = cluster.events("failed")
    assert [(e["kind"], e["error"], e["in_a_row"]) for e in failed] == [
        ("lost", "worker 1: its process is gone", number) for number in (1, 2)
    ]


def test_too_many_without_a_checkpoint_in_between_are_the_end(cluster: Cluster) -> None:
    cluster.plan(LOST, LOST, LOST)
    with pytest.raises(TrainingError, match="its process is gone .failed 3 times in a row without a new checkpoint"):
        cluster.train()
    (event,) = cluster.events("gave_up")
    assert "its process is gone" in event["error"]


def test_a_run_that_makes_checkpoints_is_never_given_up(cluster: Cluster) -> None:
    for step in range(20):
        cluster.plan(Group(LOST, [cluster.says("checkpoint", step=step)]), LOST)
    cluster.plan(DONE)
    assert cluster.train(max_failures=2) == {"next_step": 20}
    assert len(cluster.started) == 41
    assert max(cluster.paused) == 2 * RETRY_SECONDS


def test_checkpoints_of_earlier_attempts_are_no_progress(cluster: Cluster) -> None:
    cluster.says("checkpoint", step=1)()
    cluster.plan(Group(LOST, [cluster.says("checkpoint", step=2)]), LOST)
    with pytest.raises(TrainingError, match="failed 2 times in a row"):
        cluster.train(max_failures=1)


def test_what_would_come_again_is_not_tried_again(cluster: Cluster) -> None:
    cluster.plan(Failed((Symptom("", "the model is a picture", 0, kind="refused"),)))
    with pytest.raises(TrainingError, match="training failed: worker 0: the model is a picture"):
        cluster.train(max_failures=9)
    assert cluster.paused == []


def test_the_same_error_twice_is_the_end_unless_steps_were_made(cluster: Cluster) -> None:
    boom = Failed((Symptom("ValueError", "boom", 0),))
    cluster.plan(boom, Group(boom, [cluster.says("checkpoint", step=1)]), boom)
    with pytest.raises(TrainingError, match="ValueError: boom .twice in a row"):
        cluster.train(max_failures=9)
    assert len(cluster.started) == 3


def test_what_workers_wrote_down_counts_more_than_what_ray_saw(cluster: Cluster) -> None:
    for _ in range(2):
        wrote = cluster.says("worker_failed", rank=0, kind=None, type="ValueError", error="boom")
        cluster.plan(Group(LOST, [wrote]))
    with pytest.raises(TrainingError, match="worker 0: ValueError: boom"):
        cluster.train(max_failures=9)


def test_one_that_could_say_nothing_is_named_with_its_node(cluster: Cluster) -> None:
    closed = Symptom("RuntimeError", "gloo: Connection closed by peer", 0)
    placed = [cluster.says("placed", rank=rank, workers=2, host=f"node-{rank}") for rank in range(2)]
    cluster.plan(Group(Failed((closed,)), placed), DONE)
    cluster.train()
    assert cluster.events("failed")[0]["error"] == "worker 1: its process or its node (node-1) is gone"


class TestSizes:
    def room(self, cluster: Cluster, room: int) -> Callable[[], None]:
        def change() -> None:
            cluster.room = room

        return change

    def test_a_fixed_number_is_asked_for_whatever_there_is(self, cluster: Cluster) -> None:
        cluster.plan(Group(LOST, [self.room(cluster, 9)]), DONE)
        cluster.train()
        assert cluster.workers == [2, 2]

    def test_it_shrinks_to_what_is_left_and_not_below_the_fewest(self, cluster: Cluster) -> None:
        cluster.room = 9
        cluster.plan(Group(LOST, [self.room(cluster, 3)]), Group(LOST, [self.room(cluster, 0)]), DONE)
        cluster.train(least=2, most=4)
        assert cluster.workers == [4, 3, 2]

    def test_a_group_that_finds_no_place_is_no_failure(self, cluster: Cluster) -> None:
        """It would otherwise count against the first real one."""
        cluster.room = 4
        cluster.plan(*[NO_ROOM] * 5, LOST, LOST, DONE)
        assert cluster.train(least=1, most=4, max_failures=2)
        assert [event["in_a_row"] for event in cluster.events("failed")] == [1, 2]
        assert len(cluster.events("waiting")) == 5
        assert cluster.paused == [RETRY_SECONDS, 2 * RETRY_SECONDS]

    def test_where_a_group_found_no_place_it_asks_for_less_whatever_is_counted(self, cluster: Cluster) -> None:
        cluster.room = 4
        cluster.plan(*[NO_ROOM] * 4, DONE)
        assert cluster.train(least=1, most=4)
        assert cluster.workers == [4, 3, 2, 1, 1]

    def test_it_grows_from_a_clean_stop(self, cluster: Cluster) -> None:
        asked = []
        cluster.room = 1
        does = [
            cluster.says("placed", rank=0, workers=1, host="node"),
            self.room(cluster, 2),
            cluster.says("training", step=0, total_steps=20, workers=1),
            lambda: asked.append((cluster.run / stopping.FILE).exists()),
            self.room(cluster, 3),
        ]
        cluster.plan(Group(STOPPED, does), DONE)
        cluster.train(least=1, most=4)
        assert cluster.workers == [1, 3]
        assert asked == [True]
        assert (cluster.events("growing")[0]["workers"], cluster.events("growing")[0]["room"]) == (1, 3)
        assert cluster.paused == [RETRY_SECONDS]  # what the first group had must be free before room is counted
        assert not cluster.events("failed", "gave_up")

    @pytest.mark.parametrize("most", [1, 4])
    def test_it_does_not_grow_beyond_the_most_nor_before_it_trains(self, cluster: Cluster, most: int) -> None:
        cluster.room = 1
        training = cluster.says("training", step=0, total_steps=20, workers=1)
        does = [self.room(cluster, 2), *([training] * 3 if most == 1 else [lambda: None] * 3)]
        cluster.plan(Group(DONE, does))
        cluster.train(least=1, most=most)
        assert not cluster.events("growing")

    def test_the_cluster_is_asked_for_the_workers_that_are_missing(self, cluster: Cluster) -> None:
        """Once it trains, not before: what is kept for the others would be in the way of the first."""
        cluster.room = 1
        trains = cluster.says("training", step=0, total_steps=20, workers=1)
        small = Group(STOPPED, [lambda: None, trains, lambda: None, self.room(cluster, 4)])
        cluster.plan(small, Group(DONE, [trains, lambda: None]))
        cluster.train(least=1, most=4)
        assert cluster.workers == [1, 4]
        assert cluster.asked == [0, 3, 0, 0], "given up before each group, and at the end"

    @pytest.mark.parametrize("ends", [LOST, KeyboardInterrupt])
    def test_nothing_is_asked_for_after_a_bad_end(self, cluster: Cluster, ends: Any) -> None:
        cluster.room = 1
        does = [cluster.says("training", step=0, total_steps=20, workers=1), lambda: None]
        cluster.plan(Group(LOST, does if ends is LOST else [*does, TestInterrupted().interrupt]))
        with pytest.raises(TrainingError if ends is LOST else KeyboardInterrupt):
            cluster.train(least=1, most=4, max_failures=0)
        assert cluster.asked == [0, 3, 0]

    def test_a_full_disk_puts_growing_off(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(stopping, "ask_to_stop", full)
        cluster.room = 1
        cluster.plan(Group(DONE, [cluster.says("training", step=0, total_steps=9, workers=1), lambda: None]))
        assert cluster.train(least=1, most=4)
        assert not cluster.events("growing")

    def test_failures_before_a_stop_are_forgotten(self, cluster: Cluster) -> None:
        cluster.plan(LOST, STOPPED, LOST, DONE)
        assert cluster.train(max_failures=1)


class TestMemory:
    def test_micro_batches_are_halved_and_then_it_says_what_would_help(self, cluster: Cluster) -> None:
        """Down to a quarter of the longest row there may be (2048 tokens)."""
        cluster.plan(*[MEMORY] * 4)
        with pytest.raises(TrainingError, match=r"as small as they get: set training.gradient_checkpointing"):
            cluster.train(max_failures=9)
        assert [tokens for _, tokens in cluster.started] == [4096, 2048, 1024, 512]
        assert all(event["smaller_micro_batches"] for event in cluster.events("failed"))

    def test_what_a_dry_run_found_is_changed_for_later_runs_too(
        self, make_setup: Callable[..., TrainSetup], request: pytest.FixtureRequest
    ) -> None:
        cluster = Cluster(make_setup("memory-dry-run", max_tokens_per_micro_batch=0))
        found = cluster.run / "dry_run.json"
        found.write_text(json.dumps({"max_tokens_per_micro_batch": 3000, "trials": [{"tokens": 3000}]}))
        cluster.plan(MEMORY, DONE)
        cluster.train()
        assert json.loads(found.read_text()) == {"max_tokens_per_micro_batch": 1500, "trials": [{"tokens": 3000}]}

    def test_the_dry_run_itself_may_have_been_too_much(self, make_setup: Callable[..., TrainSetup]) -> None:
        cluster = Cluster(make_setup("memory-no-dry-run", max_tokens_per_micro_batch=0))
        cluster.plan(MEMORY, DONE)
        cluster.train()
        assert json.loads((cluster.run / "dry_run.json").read_text())["max_tokens_per_micro_batch"] == 1024


class TestInterrupted:
    def interrupt(self) -> None:
        raise KeyboardInterrupt

    def begun(self, cluster: Cluster) -> Callable[[], None]:
        return cluster.says("training", step=0, total_steps=20, workers=2)

    def test_it_stops_with_a_checkpoint(self, cluster: Cluster) -> None:
        asked = []
        does = [self.begun(cluster), self.interrupt]
        group = Group(STOPPED, does, lambda: asked.append((cluster.run / stopping.FILE).exists()))
        cluster.plan(group)
        with pytest.raises(KeyboardInterrupt):
            cluster.train()
        assert asked == [True]
        assert group.waited[-1] == attempts.GRACE_SECONDS
        assert not (cluster.run / stopping.FILE).exists()

    @pytest.mark.parametrize(("ends", "stopped"), [(STOPPED, True), (DONE, True), (LOST, False)])
    def test_it_says_whether_there_is_one(self, cluster: Cluster, ends: Finished | Failed, stopped: bool) -> None:
        cluster.plan(Group(ends, [self.begun(cluster), self.interrupt]))
        with pytest.raises(KeyboardInterrupt):
            cluster.train()
        (event,) = cluster.events("stopped")
        assert event["checkpoint"] == stopped
        assert not (cluster.run / stopping.FILE).exists()

    def test_another_one_does_not_wait(self, cluster: Cluster) -> None:
        cluster.plan(Group(STOPPED, [self.begun(cluster), self.interrupt, self.interrupt]))
        with pytest.raises(KeyboardInterrupt):
            cluster.train()
        (event,) = cluster.events("stopped")
        assert not event["checkpoint"]

    def test_before_the_first_step_there_is_nothing_to_save(self, cluster: Cluster) -> None:
        group = Group(STOPPED, [self.interrupt])
        cluster.plan(group)
        with pytest.raises(KeyboardInterrupt):
            cluster.train()
        assert attempts.GRACE_SECONDS not in group.waited
        assert not cluster.events("stopping")

    def test_what_was_asked_of_an_earlier_attempt_is_withdrawn(self, cluster: Cluster) -> None:
        """`start` of the cluster looks."""
        stopping.ask_to_stop(cluster.run, "left behind")
        cluster.plan(LOST, DONE)
        assert cluster.train()
