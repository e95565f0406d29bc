"""Thousands of lives of jobs in a simulated cluster: everything that can die does, wherever it stands.

The reconciler, the store on SQLite and the job's directory are the real ones; drivers and the cluster are simulated.
Each time the reconciler is about to talk to the store or the cluster, or just has, it may be killed, the reply may be
lost, a second reconciler may look, drivers go on, are killed or end with an error, the cluster forgets everything, and
users cancel, pause and resume. BCO_FAULT_POINTS and BCO_FAULT_SEED as in tests/faults: how many lives, and which.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bco_ray.control import deciding
from bco_ray.control.deciding import MOST_LOSSES, RayState
from bco_ray.control.job import IllegalMoveError, Job, JobEvent, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.reconciler import Reconciler, Room
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.control.service import JobService
from bco_ray.control.states import ENDED, MOVES, Status
from bco_ray.errors import ClusterError, StorageError
from bco_ray.storage import files
from bco_ray.storage.database import open_database
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.training.metrics import MetricsLog

WORLDS = 16 * int(os.environ.get("BCO_FAULT_POINTS", "6"))
SEED = int(os.environ.get("BCO_FAULT_SEED", "0"))
JOBS = 3
"""At once, and room for one less."""
STEPS = 9
CHECKPOINT_STEPS = 3
LOOKS = 200
"""After which everything has ended, once nothing breaks any more."""
WAITS = 4
"""Looks that a driver waits for the lock; the real one waits two minutes."""

REQUEST = JobRequest(model="/models/base", training_file="votes.jsonl")


class Killed(BaseException):
    """The process that stands here dies. No Exception: nobody in it hears of that."""


@dataclass
class Driver:
    """One process of `bco_ray.pipeline.driver`: `life` writes what that writes, and every `yield` is a place to die."""

    world: World
    job_id: str
    attempt: int
    told_to_stop: bool = False
    orphan: bool = False
    state: RayState = "pending"

    def __post_init__(self) -> None:
        self.life = self._live()

    @property
    def lives(self) -> bool:
        return self.state in {"pending", "running"}

    def go_on(self) -> None:
        """To the next place to die."""
        if not self.lives:
            return
        self.state = "running"
        try:
            next(self.life)
        except StopIteration as end:
            self.state = "stopped" if self.told_to_stop else end.value
        except StorageError:  # the lock is another's, or a newer attempt has begun
            self.state = "stopped" if self.told_to_stop else "failed"

    def kill(self) -> None:
        if self.lives:
            self.life.close()
            self.state = "failed"

    def _live(self) -> Iterator[None]:
        yield
        directory = JobDirectory(self.world.storage, self.job_id)
        with ExitStack() as held:
            for more in reversed(range(WAITS)):
                try:
                    held.enter_context(files.locked(directory.path / ".driver.lock", busy="another driver runs"))
                    break
                except StorageError:
                    if not more:
                        raise
                yield
            directory.begin_attempt(self.attempt)
            yield
            return (yield from self._run(directory))
        return "failed"

    def _run(self, directory: JobDirectory) -> Iterator[None]:
        run = self.world.storage / "runs" / self.job_id
        directory.write("resolved", {"spec": self.world.spec(self.job_id), "run": str(run)})
        directory.write("progress", {"phase": "read", "percent": 0.0, "eta_seconds": None})
        yield
        if self.job_id in self.world.faulty:
            directory.write("error", {"attempt": self.attempt, "code": "data_error", "message": "no votes"})
            yield
            return "failed"
        directory.write("progress", {"phase": "train", "percent": 10.0, "eta_seconds": 1.0})
        if not (run / "model").is_file():
            if not (yield from self._train(run)):
                return "failed"
            self.world.trained[self.job_id] += 1
            files.write_bytes(run / "model", b"weights")
        yield
        self.world.registered.setdefault(self.job_id, f"bot/{len(self.world.registered) + 1}")
        yield
        directory.write("outcome", {"model": self.world.registered[self.job_id], "trained_tokens": STEPS})
        yield
        return "succeeded"

    def _train(self, run: Path) -> Iterator[None]:
        """Whether it came to its end: without a cluster there is no training, and who is told to stop stops."""
        status = run / "status.json"
        first = files.read_json(status)["checkpoint_step"] if status.is_file() else 0
        log = MetricsLog(run / "metrics.jsonl")
        log.truncate(first)
        for step in range(first, STEPS):
            if self.orphan or self.told_to_stop:
                return False
            log.append({"step": step, "total_steps": STEPS, "loss": 0.5})
            if (step + 1) % CHECKPOINT_STEPS == 0:
                files.write_json(status, {"step": step, "total_steps": STEPS, "checkpoint_step": step + 1})
            yield
        return True


@dataclass
class Ray:
    """What Ray's Jobs API amounts to. `chance` is called before and after everything that is asked of it."""

    world: World
    chance: Callable[[], None]
    known: dict[str, Driver] = field(default_factory=dict)
    down: bool = False

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        with self._asked():
            if submission not in self.known:
                self.known[submission] = Driver(self.world, job_id, attempt)
                self.world.drivers.append(self.known[submission])

    def state(self, submission: str) -> RayState:
        with self._asked():
            return self.known[submission].state if submission in self.known else "unknown"

    def stop(self, submission: str) -> None:
        with self._asked():
            if submission not in self.known:
                raise ClusterError("404")
            self.known[submission].told_to_stop = True

    def forget(self) -> None:
        """Another cluster in its place. Some of the drivers have not noticed yet."""
        for driver in self.known.values():
            driver.orphan = True
            if self.world.rng.random() < 0.7:
                driver.kill()
        self.known, self.down = {}, False

    def _asked(self) -> ExitStack:
        """The request may fail before it arrives, and its reply be lost."""
        self.chance()
        self._perhaps_unreachable()
        after = ExitStack()
        after.callback(self._perhaps_unreachable)
        after.callback(self.chance)
        return after

    def _perhaps_unreachable(self) -> None:
        if self.down or (not self.world.calm and self.world.rng.random() < 0.02):
            raise ClusterError("nobody there")


class KillableStore(JobStore):
    """Before and after each transaction there is a chance."""

    def __init__(self, engine: sa.Engine, ended: Any, chance: Callable[[], None]) -> None:
        super().__init__(engine, ended)
        self._chance = chance

    def unsettled(self) -> list[Job]:
        return self._between(super().unsettled)

    def move(self, *args: Any, **options: Any) -> Job:
        return self._between(super().move, *args, **options)

    def note(self, *args: Any, **options: Any) -> Job:
        return self._between(super().note, *args, **options)

    def _between(self, act: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self._chance()
        done = act(*args, **options)
        self._chance()
        return done


class World:
    """Jobs, two reconcilers, one cluster at a time, and chance."""

    def __init__(self, storage: Path, engine: sa.Engine, seed: str) -> None:
        self.storage, self.rng, self.calm = storage, random.Random(seed), False
        self.drivers: list[Driver] = []
        self.faulty: set[str] = set()
        self.registered: dict[str, str] = {}
        self.trained, self.told, self.counts = Counter[str](), Counter[str](), Counter[str]()
        self.ray = Ray(self, self.chance)
        self.store = JobStore(engine, self._ended)
        self.killable = KillableStore(engine, self._ended, self.chance)
        self.service = JobService(self.store, None, storage, storage, None)  # type: ignore[arg-type]  # only asked to steer
        self.reconcilers = [self._reconciler(), self._reconciler()]
        self.looking: list[int] = []
        self.clusters = 0
        self.jobs = [self._order() for _ in range(JOBS)]
        self.wanted: dict[str, Status] = {}

    def chance(self) -> None:
        """Of whatever may happen while a reconciler stands somewhere."""
        dice = 1.0 if self.calm else self.rng.random()
        if dice < 0.05:
            self.counts["reconcilers"] += 1
            raise Killed
        if dice < 0.45:
            self.happen()

    def happen(self) -> None:
        """Something, elsewhere."""
        what = self.rng.choices(
            [self.drivers_go_on, self.a_driver_dies, self.a_user_acts, self.another_looks, self.ray_goes_or_comes,
             self.all_is_forgotten],
            [60, 6, 6, 20, 4, 2],
        )[0]  # fmt: skip
        what()

    def drivers_go_on(self) -> None:
        for driver in self.drivers:
            if self.rng.random() < 0.8:
                driver.go_on()

    def a_driver_dies(self) -> None:
        living = [driver for driver in self.drivers if driver.lives]
        if living:
            self.counts["drivers"] += 1
            self.rng.choice(living).kill()

    def a_user_acts(self) -> None:
        job_id = self.rng.choice(self.jobs)
        verb = self.rng.choices(["cancel", "pause", "resume"], [1, 3, 6])[0]
        with suppress(IllegalMoveError):
            self.wanted[job_id] = getattr(self.service, verb)(job_id, "acme", "key").status

    def another_looks(self) -> None:
        if len(self.looking) < 2:
            self.look(1 - self.looking[0] if self.looking else 0)

    def ray_goes_or_comes(self) -> None:
        self.ray.down = not self.ray.down

    def all_is_forgotten(self) -> None:
        """The reconcilers were on that cluster."""
        self.counts["clusters"] += 1
        self.ray.forget()
        self.clusters += 1
        self.reconcilers = [self._reconciler(), self._reconciler()]
        if self.looking:
            raise Killed

    def look(self, which: int) -> None:
        """One look of a reconciler, which may be its last, or the last of all on its cluster."""
        cluster = self.clusters
        self.looking.append(which)
        try:
            self.reconcilers[which].run_once()
        except Killed:
            if len(self.looking) > 1 and self.clusters != cluster:
                raise
            self.reconcilers[which] = self._reconciler()
        finally:
            self.looking.pop()

    def settle(self) -> None:
        """Nothing breaks any more: all that is not paused ends."""
        self.calm, self.ray.down = True, False
        for _ in range(LOOKS):
            self.look(0)
            for driver in 4 * self.drivers:
                driver.go_on()
            if self.settled:
                return
        pytest.fail(f"not settled: {self.store.unsettled()}")

    @property
    def settled(self) -> bool:
        if any(driver.lives for driver in self.drivers):
            return False
        return all(job.status == "paused" and not job.holds_cluster for job in self.store.unsettled())

    def _ended(self, _: sa.Connection, job: Job) -> None:
        self.told[job.id] += 1

    def _reconciler(self) -> Reconciler:
        return Reconciler(self.killable, self.ray, self.storage, Room(JOBS - 1))

    def _order(self) -> str:
        job_id = new_id("ftjob")
        sent = REQUEST.model_dump(mode="json", exclude_unset=True)
        if self.rng.random() < 0.1:
            self.faulty.add(job_id)
        order = Order(job_id, "acme", "key", sent, self.spec(job_id), {}, body_hash(sent))
        return self.store.create(order)[0].id

    def spec(self, job_id: str) -> dict[str, Any]:
        where = {"log": "votes.jsonl", "register_as": "bot"}
        return spec_of(REQUEST, job_id, str(self.storage), **where).model_dump(mode="json")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """Processes die here, not machines: nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(deciding, "AGAIN_SECONDS", (0.0,))
    made = open_database(tmp_path)
    sa.event.listen(made, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    made.dispose()
    return made


def test_whatever_dies_every_job_ends_as_it_should(engine: sa.Engine, tmp_path: Path, tally: Any) -> None:
    for number in range(WORLDS):
        world = World(tmp_path, engine, f"{SEED} {number}")
        try:
            live_and_check(world)
        except AssertionError as error:
            error.add_note(f"BCO_FAULT_SEED={SEED}, world {number}")
            raise
        tally("simulated kills", {**world.counts, "jobs": JOBS})


def live_and_check(world: World) -> None:
    for _ in range(world.rng.randint(2, 30)):
        world.happen() if world.rng.random() < 0.6 else world.look(world.rng.randrange(2))
    world.settle()
    for job_id in world.jobs:
        check(world, job_id)
    for job_id, status in world.wanted.items():
        if status == "paused":
            world.wanted[job_id] = world.service.resume(job_id, "acme", "key").status
    world.settle()
    for job_id in world.jobs:
        check(world, job_id)
    assert not world.store.unsettled()


def check(world: World, job_id: str) -> None:
    """What is stored of a job is what was wanted and what happened."""
    job, events = world.store.get(job_id), world.store.events_since(job_id, 0)
    losses = sum("was lost" in event.message for event in events)
    assert told_states(events)[-1] == job.status
    match world.wanted.get(job_id, "queued"):
        case "cancelled" | "paused" as status:
            assert job.status == status
        case _ if job_id in world.faulty:
            assert (job.status, job.error and job.error["code"]) == ("failed", "data_error")
        case _ if job.status == "failed":
            assert job.error
            assert job.error["code"] == "lost"
            assert losses >= MOST_LOSSES - 1
        case _:
            assert (job.status, job.outcome and job.outcome["model"]) == ("succeeded", world.registered[job_id])
    assert world.told[job_id] == (job.status in ENDED)
    assert world.trained[job_id] <= 1
    check_events(world, job, [event.message for event in events])
    check_steps(job, [event.data["step"] for event in events if event.type == "metrics"])


def told_states(events: list[JobEvent]) -> list[Status]:
    """The states that the events tell of: one after the other as the table allows."""
    said: dict[str, Status] = {
        "Created fine-tuning job.": "validating_files", "Files validated, moving job to queued state.": "queued",
        "Fine-tuning job started.": "running", "The job was paused.": "paused", "The job was resumed.": "queued",
        "The job was cancelled.": "cancelled", "The job has successfully completed.": "succeeded",
    }  # fmt: skip
    states: list[Status] = []
    for event in events:
        lost: Status | None = "queued" if "was lost" in event.message else None
        after = said.get(event.message, "failed" if event.level == "error" else lost)
        if after is None or (lost and states[-1] == "queued"):
            continue
        assert after in MOVES[states[-1]] if states else after == "validating_files"
        states.append(after)
    return states


def check_events(world: World, job: Job, messages: list[str]) -> None:
    """Every attempt was begun once, and left the cluster once."""
    begun = [message for message in messages if message.startswith("Attempt") and "goes to the cluster" in message]
    assert begun == [f"Attempt {n + 1} goes to the cluster." for n in range(job.attempt)]
    left = sum("was lost" in message or message == "The cluster is free of it." for message in messages)
    assert left == job.attempt
    made = [message for message in messages if message.startswith("New fine-tuned model")]
    assert len(made) == (job.status == "succeeded")


def check_steps(job: Job, steps: list[int]) -> None:
    assert steps == list(range(len(steps)))
    assert job.status != "succeeded" or len(steps) == STEPS
