"""The kill harness of all fault tests: processes with a kill armed at a file operation, and their certain end.

BCO_FAULT_POINTS says how many kills a test makes where it samples (default 3), BCO_FAULT_SEED which ones (default 0),
BCO_FAULT_REPORT names a file that gets one JSON line per test with what was counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

HERE = Path(__file__).parent
POINTS = int(os.environ.get("BCO_FAULT_POINTS", "3"))
SEED = int(os.environ.get("BCO_FAULT_SEED", "0"))
Tally = Callable[[str, dict[str, int]], None]

T = TypeVar("T")


@dataclass(frozen=True)
class Kill:
    """Before which file operation below the root a process dies: the nth, over all processes, whose name (`open` for
    writing, `rename`, `link`, `remove`, `mkdir`, `rmdir`) matches `operation` and whose path (relative to the root, of
    a rename the new one) has a match of `path`. `everyone`: all processes of the test die, not only that one.
    """

    nth: int = 1
    operation: str = ".*"
    path: str = ""
    everyone: bool = False


@dataclass(frozen=True)
class Operation:
    """One line of what happened below the root."""

    pid: int
    operation: str
    path: str


@dataclass
class Child:
    """A process. `ended` is its exit status, negative for a signal, or None while it runs."""

    pid: int
    ended: Callable[[], int | None]
    log: Path

    @property
    def output(self) -> str:
        """What it has said so far, on stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, timeout_seconds: float = 120) -> int:
        """Its exit status. It is killed, and the test fails, if it has none in time."""
        if not until(lambda: self.ended() is not None, timeout_seconds):
            self.kill()
            pytest.fail(f"process {self.pid} still ran after {timeout_seconds} s:\n{self.output[-4000:]}")
        status = self.ended()
        assert status is not None
        return status

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.ended() is None:
            with contextlib.suppress(ProcessLookupError):  # gone, but its status is not written down yet
                os.kill(self.pid, signal.SIGKILL)
            assert until(lambda: self.ended() is not None, 60)


@dataclass(frozen=True)
class Outcome:
    """How a process ended: status (negative for a signal), whether the armed kill went off, what it said."""

    status: int
    fired: bool
    output: str


@dataclass
class Faults:
    """Processes that can be killed at any file operation below `root`, and the sampling and counting around them."""

    root: Path
    own: Path  # where the harness keeps its files, outside of the root
    rng: random.Random
    count: Callable[[str, dict[str, int]], None]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    points: int = POINTS
    loaded: bool = False  # whether a kill was armed last, gone off or not

    @property
    def environment(self) -> dict[str, str]:
        """Of every process started here; whatever they start inherits it."""
        path = os.pathsep.join(filter(None, [str(HERE / "site"), os.environ.get("PYTHONPATH")]))
        files = {"BCO_FAULT_LOG": str(self.own / "operations"), "BCO_FAULT_KILL": str(self._armed)}
        return {
            **os.environ,
            "PYTHONPATH": path,
            "BCO_FAULT_ROOT": str(self.root),
            "BCO_FAULT_MARK": self.mark,
            **files,
        }

    def start(self, *command: str | Path, **environment: str) -> Child:
        """A process in a session of its own; a script (`x.py`) runs under this Python."""
        words = [str(word) for word in ((sys.executable, *command) if str(command[0]).endswith(".py") else command)]
        log = self._new_file("output")
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**self.environment, **environment}, start_new_session=True,
            )  # fmt: skip
        return Child(process.pid, process.poll, log)

    def run(
        self, *command: str | Path, kill: Kill | None = None, timeout_seconds: float = 120, **environment: str
    ) -> Outcome:
        """Start, with a kill armed if one is given, and wait for the end."""
        self.arm(kill)
        return self.outcome(self.start(*command, **environment), timeout_seconds)

    def outcome(self, child: Child, timeout_seconds: float = 120) -> Outcome:
        """Wait for a child; whatever was armed is disarmed."""
        status = child.wait(timeout_seconds)
        fired = self.loaded and not self.armed
        self.arm(None)
        return Outcome(status, fired, child.output)

    def nursery(self, *modules: str) -> Nursery:
        """Where processes start in milliseconds, with these modules imported."""
        return Nursery(self, modules)

    def before(self, nth: int = 1, *, operation: str = ".*", path: str = "", everyone: bool = False) -> Kill:
        """A kill to arm: test modules cannot import the class."""
        return Kill(nth, operation, path, everyone)

    def arm(self, kill: Kill | None) -> None:
        """From now on, in processes that run already too; None: no more."""
        self._armed.unlink(missing_ok=True)
        self.loaded = kill is not None
        if kill is not None:
            scratch = self._new_file("arming")
            scratch.write_text(json.dumps({**asdict(kill), "count": str(self._new_file("count"))}))
            scratch.replace(self._armed)

    @property
    def armed(self) -> bool:
        """Whether a kill waits; False once it has gone off."""
        return self._armed.exists()

    def operations(self) -> list[Operation]:
        """What was about to happen below the root since this was last asked, in order; a killed one is there too."""
        path = self.own / "operations"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [Operation(int(pid), name, where) for pid, name, where in (line.split("\t", 2) for line in lines)]

    def sample(self, candidates: Sequence[T], at_most: int | None = None) -> list[T]:
        """`points` of the candidates (all, if there are no more), in their order."""
        number = min(self.points if at_most is None else at_most, len(candidates))
        return [candidates[i] for i in sorted(self.rng.sample(range(len(candidates)), number))]

    def until(self, condition: Callable[[], bool], timeout_seconds: float = 60) -> bool:
        """Whether it came true in time."""
        return until(condition, timeout_seconds)

    def running(self) -> set[int]:
        """The ids of all processes that were started from here, by whomever."""
        return family(f"BCO_FAULT_MARK={self.mark}\0".encode())

    def report(self, name: str, **counts: int) -> None:
        """For the last lines of the session and for BCO_FAULT_REPORT."""
        self.count(name, counts)

    def end_all(self, timeout_seconds: float = 60) -> None:
        """SIGKILL everything that was started from here, and what that started, until nothing is left."""
        assert until(lambda: not self._kill_running(), timeout_seconds), "processes do not end"

    def _kill_running(self) -> set[int]:
        running = self.running()
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return running

    @property
    def _armed(self) -> Path:
        return self.own / "kill.json"

    def _new_file(self, kind: str) -> Path:
        return self.own / f"{kind}-{uuid.uuid4().hex[:12]}"


class Nursery:
    """A process that has imported `modules` and forks others from itself."""

    def __init__(self, faults: Faults, modules: Sequence[str]) -> None:
        self._faults = faults
        self._process = subprocess.Popen(
            [sys.executable, HERE / "nursery.py", *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=faults.environment, start_new_session=True,
        )  # fmt: skip
        assert self._line() == b"ready\n"

    def start(self, script: Path, *arguments: str | Path) -> Child:
        """The script with these arguments."""
        log, status = self._faults._new_file("output"), self._faults._new_file("status")
        order = {"argv": [str(script), *map(str, arguments)], "output": str(log), "status": str(status)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return Child(int(self._line()), lambda: int(status.read_text()) if status.exists() else None, log)

    def run(
        self, script: Path, *arguments: str | Path, kill: Kill | None = None, timeout_seconds: float = 120
    ) -> Outcome:
        """See `Faults.run`."""
        self._faults.arm(kill)
        return self._faults.outcome(self.start(script, *arguments), timeout_seconds)

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 120)[0], "the nursery does not answer"
        return self._process.stdout.readline()


def until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


def family(mark: bytes) -> set[int]:
    """The processes with `mark` in their environment, and all below them: some (Ray's workers) write over it."""
    parents = {int(entry.name): parent for entry in Path("/proc").glob("[0-9]*") if (parent := parent_of(entry))}
    found = {pid for pid in parents if mark in read_or_nothing(Path(f"/proc/{pid}/environ"))}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def parent_of(entry: Path) -> int | None:
    """None for one that is gone or only waits to be reaped."""
    state, _, rest = read_or_nothing(entry / "stat").rpartition(b")")[2].strip().partition(b" ")
    return None if state in (b"", b"Z", b"X") else int(rest.split()[0])


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def faults(tmp_path: Path, request: pytest.FixtureRequest, tally: Tally) -> Iterator[Faults]:
    """The harness for one test. Whatever was started is gone after it."""
    test = request.node.nodeid
    print(f"BCO_FAULT_SEED={SEED} BCO_FAULT_POINTS={POINTS}")  # noqa: T201  # pytest shows it if the test fails
    root, own = tmp_path.resolve() / "root", tmp_path.resolve() / "faults"
    root.mkdir()
    own.mkdir()
    harness = Faults(root, own, random.Random(f"{SEED} {test}"), partial(count, tally, test))
    try:
        yield harness
    finally:
        harness.end_all()


def count(tally: Tally, test: str, name: str, counts: dict[str, int]) -> None:
    """Add to the session's sums, and to the report that BCO_FAULT_REPORT asks for."""
    tally(f"faults: {name}", counts)
    if report := os.environ.get("BCO_FAULT_REPORT"):
        line = {"name": name, "test": test, "seed": SEED, "points": POINTS, "counts": counts}
        with Path(report).open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who asks for more points waits longer."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(300 + 20 * POINTS))
