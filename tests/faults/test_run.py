"""`bco run` killed in every phase, its own process, a worker of Ray or all at once: run again, it ends the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bco_ray.storage.registry import Registry
from bco_ray.storage.run_journal import RunJournal
from bco_ray.storage.salt import SALT_VARIABLE
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

BCO = Path(sys.executable).with_name("bco")
PHASES = {
    "read": r"storage/records/",
    "score": r"storage/(scored|reference)/",
    "train": r"storage/runs/[^/]+/(checkpoints|metrics|attempt|dry_run|model|outcome)",
    "evaluate": r"storage/runs/[^/]+/(curves|evaluation)",
    "register": r"storage/models/",
}
ROWS = 240


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A log of 240 votes and two that are none; some 20 steps with a checkpoint every three."""
    write_tiny_model(tmp_path / "base")
    votes = [{"prompt": f"Question {n % 60}?", "completion": f"{'Yes' if n % 7 else 'No'}, {n}.", "label": n % 3 == 0}
             for n in range(ROWS)]  # fmt: skip
    lines = [json.dumps(vote) for vote in votes] + ["{", '{"prompt": "q", "completion": "", "label": true}']
    (tmp_path / "votes.jsonl").write_text("\n".join(lines) + "\n")
    values = {
        "name": "tiny",
        "model": {"base": str(tmp_path / "base")},
        "data": {"feedback": str(tmp_path / "votes.jsonl"), "validation": 0.2},
        "training": {"learning_rate": 1e-3, "rows_per_step": 16, "max_length": 64, "num_train_epochs": 2,
                     "max_tokens_per_micro_batch": 128, "checkpoint": {"every_steps": 3}},
    }  # fmt: skip
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    directory = tempfile.mkdtemp(prefix="bco-", dir="/tmp")  # a socket's path must stay short
    yield {"RAY_TMPDIR": directory, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", SALT_VARIABLE: "of both storages"}
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.timeout(7200)
def test_killed_in_every_phase(faults: Any, spec: Path, environment: dict[str, str]) -> None:
    def run(home: Path, kill: Any = None) -> Any:
        command = [BCO, "run", spec, "--set", f"output.storage={home / 'storage'}", "--json"]
        outcome = faults.run(*command, kill=kill, timeout_seconds=300, **environment)
        faults.end_all()
        assert outcome.status in (0, -9), outcome.output[-4000:]
        return outcome

    whole = faults.root / "whole"
    assert run(whole).status == 0
    seen = [operation.path for operation in faults.operations()]
    wanted, kills, survived = result(whole), 0, 0
    lives = list(planned(faults))
    for number, life in enumerate(lives):
        home = faults.root / f"life-{number}"
        for phase, everyone in life:
            # Not every run writes equally often, so that the last of the counted ones may not come in this run.
            there = sum(re.search(f"^whole/{PHASES[phase]}", path) is not None for path in seen)
            nth = faults.rng.randint(1, max(1, there * 2 // 3))
            outcome = run(home, faults.before(nth, path=f"^{home.name}/{PHASES[phase]}", everyone=everyone))
            kills += outcome.fired
            survived += outcome.fired and outcome.status == 0
        finished = {path: path.stat().st_mtime_ns for path in (home / "storage").glob("*/*/manifest.json")}
        assert run(home).status == 0
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished phase was done again"
        assert result(home) == wanted
    faults.report("bco run", kills=kills, survived_without_a_rerun=survived, runs_that_ended_the_same=len(lives))
    assert kills


def planned(faults: Any) -> Iterator[list[tuple[str, bool]]]:
    """In which phases each run is killed, in their order, and whether every process or only the one that is there.

    One kill in the short set. In a long one each phase in turn; a run whose worker alone is killed survives it, so
    nothing comes after that.
    """
    if faults.points < 12:
        yield [("train", True)]
        return
    names = list(PHASES)
    for number in range(faults.points // 3):
        if number % 2:
            yield [(names[number // 2 % len(names)], False)]
        else:
            yield [(name, True) for name in sorted(faults.rng.sample(names, 2), key=names.index)]


def result(home: Path) -> dict[str, Any]:
    """All that a run leaves that somebody could see, but for times and places."""
    storage = home / "storage"
    version = Registry(storage).get("tiny", 1)
    assert Registry(storage).versions("tiny") == [1]
    assert version.lineage["votes"]["read"] == ROWS + 2
    (run,) = (path for path in (storage / "runs").iterdir() if path.is_dir())
    timeless = {"seconds", "tokens_per_second"}
    steps = [{k: v for k, v in row.items() if k not in timeless} for row in MetricsLog(run / "metrics.jsonl").read()]
    told = ("votes", "classes", "shards", "evaluation", "records")
    return {
        "lineage": {name: version.lineage[name] for name in told},
        "steps": steps,
        "outcome": json.loads((run / "outcome.json").read_text()),
        "weights": {name: t.tolist() for name, t in load_file(version.directory / "model.safetensors").items()},
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_makes_a_checkpoint_first(
    faults: Any, spec: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    """Exit 130, and the next command does no step twice."""
    if faults.points < 12:
        pytest.skip("in the long set only: make soak")
    storage, more = faults.root / "storage", ["--set", "training.num_train_epochs=60"]
    command = [BCO, "run", spec, "--set", f"output.storage={storage}", *more]
    child = faults.start(*command, **environment)
    assert faults.until(lambda: list(storage.glob("runs/*/checkpoints/*/manifest.json")), 200), child.output
    os.kill(child.pid, number)
    assert child.wait(60) == 130, child.output
    (run,) = storage.glob("runs/*/events.jsonl")
    (stopped,) = (event for event in RunJournal(run.parent).read() if event["event"] == "stopped")
    assert stopped["checkpoint"]
    faults.end_all()
    done = len(MetricsLog(run.with_name("metrics.jsonl")).read())
    assert faults.run(*command, timeout_seconds=300, **environment).status == 0
    starts = [event["step"] for event in RunJournal(run.parent).read() if event["event"] == "training"]
    assert starts == [0, done]
    faults.report("bco run", signals=1, steps_done_twice=0)
