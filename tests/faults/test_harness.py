"""The kill harness itself: kills where it was told to, once, before the operation, and leaves nothing running."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

WORK = """
import os, shutil, sys
from pathlib import Path
root = Path(sys.argv[1])
(root / "d").mkdir()
(root / "d" / "a").write_text("1")
(root / "d" / "a").read_text()
(root / "d" / "a").replace(root / "d" / "b")
shutil.rmtree(root / "d")
Path(sys.argv[2]).write_text("elsewhere")
print("done")
"""

SEEN = [("mkdir", "d"), ("open", "d/a"), ("rename", "d/b"), ("remove", "d/b"), ("rmdir", "d")]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "work.py"
    path.write_text(WORK)
    return path


def test_every_operation_below_the_root_is_seen(faults: Any, script: Path, tmp_path: Path) -> None:
    outcome = faults.run(script, faults.root, tmp_path / "elsewhere")
    assert (outcome.status, outcome.fired, outcome.output) == (0, False, "done\n")
    assert [(o.operation, o.path) for o in faults.operations()] == SEEN
    assert faults.operations() == []


@pytest.mark.parametrize("nth", range(1, len(SEEN) + 1))
def test_dies_before_the_nth(faults: Any, script: Path, tmp_path: Path, nth: int) -> None:
    outcome = faults.run(script, faults.root, tmp_path / "elsewhere", kill=faults.before(nth))
    assert (outcome.status, outcome.fired) == (-9, True)
    there = {str(p.relative_to(faults.root)) for p in faults.root.rglob("*")}
    assert there == [set(), {"d"}, {"d", "d/a"}, {"d", "d/b"}, {"d"}][nth - 1]
    assert not (tmp_path / "elsewhere").exists()


def test_what_does_not_match_is_not_counted(faults: Any, script: Path, tmp_path: Path) -> None:
    kill = faults.before(operation="open|remove", path="b$")
    assert faults.run(script, faults.root, tmp_path / "x", kill=kill).fired
    assert [o.operation for o in faults.operations()][-1] == "remove"
    assert faults.run(script, faults.root, tmp_path / "x", kill=faults.before(path="nowhere")).fired is False


def test_counted_over_processes_and_fired_once(faults: Any, tmp_path: Path) -> None:
    touch = tmp_path / "touch.py"
    touch.write_text("import sys, pathlib\nfor i in range(10): pathlib.Path(sys.argv[1], str(i)).write_text('')")
    faults.arm(faults.before(25, operation="open"))
    nursery = faults.nursery()
    children = [nursery.start(touch, faults.root) for _ in range(4)]
    assert sorted(child.wait() for child in children) == [-9, 0, 0, 0]
    assert not faults.armed


def test_everyone_dies_together(faults: Any, tmp_path: Path) -> None:
    sleeper, killer = tmp_path / "sleeper.py", tmp_path / "killer.py"
    sleeper.write_text("import subprocess, sys, time\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\n"
                       "print('up', flush=True)\ntime.sleep(60)")  # fmt: skip
    killer.write_text("import sys, pathlib\npathlib.Path(sys.argv[1], 'x').write_text('')")
    child = faults.start(sleeper)
    assert faults.until(lambda: "up" in child.output)
    outcome = faults.run(killer, faults.root, kill=faults.before(everyone=True))
    assert (outcome.status, child.wait(), faults.running()) == (-9, -9, set())


def test_nothing_is_left_running(faults: Any, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import subprocess, time\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\n"
                       "print('up', flush=True)\ntime.sleep(60)")  # fmt: skip
    children = [faults.start(sleeper), faults.nursery().start(sleeper)]
    assert faults.until(lambda: all("up" in child.output for child in children))
    assert len(faults.running()) == 5, "two sleepers, their orphans, and the nursery"
    faults.end_all()
    assert faults.running() == set()


def test_another_sitecustomize_still_runs(faults: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['OTHER'] = 'ran'")
    path = os.pathsep.join([faults.environment["PYTHONPATH"], str(tmp_path)])
    outcome = faults.run(sys.executable, "-c", "import os; print(os.environ['OTHER'])", PYTHONPATH=path)
    assert outcome.output == "ran\n"


def test_the_same_seed_takes_the_same_sample(faults: Any) -> None:
    assert faults.sample(range(3), at_most=5) == [0, 1, 2]
    drawn = faults.sample(range(1000), at_most=4)
    assert drawn == sorted(set(drawn))
