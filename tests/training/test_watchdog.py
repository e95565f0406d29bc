"""A process that hangs is ended, and says where it hung; one that gets on is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bco_ray.storage.run_journal import RunJournal
from bco_ray.training.watchdog import EXIT_CODE, LOOKS_PER_LIMIT, collective_seconds

BEGIN = """
import sys, threading, time
from pathlib import Path
from bco_ray.training import watchdog
from bco_ray.training.watchdog import Watchdog

run = Path(sys.argv[1])

def stuck_here():
    threading.Event().wait(120)
"""

HANGS = """
with Watchdog(run, 3, 0.5) as dog:
    dog.beat("training step 7")
    stuck_here()
"""

HANGS_ON_STORAGE = """
watchdog.LAST_WORDS_SECONDS = 0.5
watchdog.RunJournal.write = lambda *_, **__: stuck_here()
with Watchdog(run, 3, 0.5):
    stuck_here()
"""

GETS_ON = """
with Watchdog(run, 3, 20.0) as dog:
    for step in range(100):
        dog.beat(f"training step {step}")
        time.sleep(0.005)
time.sleep(0.1)
print("done", threading.active_count())
"""

RAISES = """
with Watchdog(run, 3, 20.0):
    raise ValueError("boom")
"""


def run_program(program: str, run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + program, str(run)]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60
    )


def test_one_that_hangs_is_ended_and_says_where(tmp_path: Path) -> None:
    assert run_program(HANGS, tmp_path).returncode == EXIT_CODE
    (event,) = RunJournal(tmp_path).read()
    assert (event["event"], event["rank"], event["kind"]) == ("worker_failed", 3, "hung")
    stacks = tmp_path / "hang-3.txt"
    assert event["error"].startswith("no progress for ")
    assert event["error"].endswith(f" s while training step 7; stacks: {stacks}")
    assert "in stuck_here" in stacks.read_text()


def test_it_ends_also_where_nothing_can_be_written_down(tmp_path: Path) -> None:
    assert run_program(HANGS_ON_STORAGE, tmp_path).returncode == EXIT_CODE


@pytest.mark.parametrize(("program", "code"), [(GETS_ON, 0), (RAISES, 1)], ids=["gets on", "raises"])
def test_one_that_gets_on_or_fails_by_itself_is_left_alone(tmp_path: Path, program: str, code: int) -> None:
    done = run_program(program, tmp_path)
    assert done.returncode == code, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert done.stdout.strip() == ("done 1" if code == 0 else "")


@pytest.mark.parametrize("hang_seconds", [1, 600, 1800, 7200, 86400])
def test_the_watchdog_is_quicker_than_the_time_limit_of_collectives(hang_seconds: float) -> None:
    """Else the worker that waits would end the group before the one that hangs could say so."""
    notices_after = hang_seconds * (1 + 1 / LOOKS_PER_LIMIT)
    assert collective_seconds(hang_seconds) > notices_after + 60
