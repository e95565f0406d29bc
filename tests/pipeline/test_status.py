"""A training's status from its events: the fold, the words, the file."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from bco_ray.pipeline import status
from bco_ray.pipeline.status import RunStatus, StatusFile
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import Progress
from bco_ray.training import attempts, checkpoint, launch, loop, restoring, watchdog

WRITERS = (attempts, checkpoint, launch, loop, restoring, watchdog)

EXAMPLES: dict[str, dict[str, Any]] = {
    "attempt": {"workers": 2},
    "waiting": {"workers": 2, "room": 1},
    "placed": {"rank": 1, "workers": 2, "host": "node"},
    "training": {"step": 50, "total_steps": 200, "workers": 2},
    "checkpoint": {"step": 100, "seconds": 0.5, "deleted": [50]},
    "checkpoint_failed": {"step": 100, "rank": 1, "error": "no space", "again_in_seconds": 2.0},
    "checkpoint_skipped": {"step": 100, "being_written": 50},
    "checkpoint_missing": {"step": 200, "rank": 0},
    "checkpoint_damaged": {"step": 100, "rank": 1, "error": "x: missing"},
    "checkpoints_unreadable": {"rank": 0, "error": "timed out", "again_in_seconds": 1.0},
    "export_failed": {"error": "no space", "again_in_seconds": 1.0},
    "worker_failed": {"rank": 1, "kind": None, "type": "ValueError", "error": "boom"},
    "failed": {"kind": "lost", "error": "worker 1: gone", "in_a_row": 1, "again_in_seconds": 5.0,
               "smaller_micro_batches": False},
    "gave_up": {"error": "worker 0: ValueError: boom (twice)"},
    "growing": {"workers": 1, "room": 3},
    "stopping": {"because": "interrupted"},
    "stopped": {"checkpoint": True},
    "finished": {},
}  # fmt: skip


def event(kind: str, **facts: Any) -> dict[str, Any]:
    return {"at": 1.0, "event": kind, **EXAMPLES[kind], **facts}


def update(file: StatusFile, events: list[dict[str, Any]], progress: Progress | None) -> None:
    for one in events:
        file.add(one)
    file.write(progress)


def written() -> dict[str, set[str]]:
    """Kind -> names of facts, of every call of a journal's `write` in the code that trains; `**` is left out."""
    found: dict[str, set[str]] = {}
    for module in WRITERS:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "write":
                kind = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                if isinstance(kind, str):
                    found[kind] = {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def test_the_examples_are_the_events_that_are_really_written() -> None:
    calls = written()
    assert calls.keys() == EXAMPLES.keys()
    for kind, names in calls.items():
        assert names <= EXAMPLES[kind].keys(), kind
        assert names == EXAMPLES[kind].keys() or kind == "worker_failed", kind
    assert status._CHANGES.keys() | status._WORDS.keys() <= EXAMPLES.keys()


def words(kind: str, *before: str) -> str:
    """What is said of it after others."""
    file = StatusFile(Path("nowhere"))
    for earlier in before:
        file.words_for(event(earlier))
        file.add(event(earlier))
    return file.words_for(event(kind))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_event_can_be_told_and_counted(kind: str) -> None:
    """Nothing here may raise: it would end the thread that watches."""
    assert "{" not in words(kind)
    assert isinstance(RunStatus().after(event(kind)), RunStatus)


@pytest.mark.parametrize("kind", ["checkpoint", "attempt", "placed", "training", "worker_failed", "gave_up"])
def test_of_what_one_would_expect_nothing_is_said(kind: str) -> None:
    assert words(kind) == ""


def test_words() -> None:
    assert words("waiting") == "waiting for the cluster: 2 workers are to start, and there is room for 1"
    assert words("failed") == "worker 1: gone; trying again in 5 s"
    assert "no checkpoint at step 100: 50 is still being written" in words("checkpoint_skipped")
    assert "checkpoint 100 cannot be written: no space; training goes on" in words("checkpoint_failed")


def test_a_trouble_that_lasts_is_told_once_and_so_is_its_end() -> None:
    assert words("checkpoint_failed", "training", "checkpoint_failed") == ""
    assert "no trouble any more" in words("checkpoint", "training", "checkpoint_failed")
    assert words("checkpoint", "training", "checkpoint_failed", "checkpoint") == ""
    assert words("checkpoint_failed", "training", "checkpoint_failed", "checkpoint")
    assert words("export_failed", "training", "checkpoint_failed"), "another trouble is told"


def fold(*events: dict[str, Any]) -> RunStatus:
    found = RunStatus()
    for one in events:
        found = found.after(one)
    return found


def test_a_run_that_goes_well() -> None:
    found = fold(event("attempt"), event("placed"), event("training", step=0), event("checkpoint"), event("finished"))
    assert found == RunStatus(
        state="finished", total_steps=200, workers=2, attempts=1, checkpoint_step=100
    )  # fmt: skip


def test_states_on_the_way() -> None:
    events = [event("attempt"), event("waiting"), event("training"), event("failed"), event("attempt"),
              event("training"), event("stopping"), event("stopped")]  # fmt: skip
    states = [fold(*events[: number + 1]).state for number in range(len(events))]
    assert states == ["starting", "waiting", "running", "retrying", "starting", "running", "stopping", "stopped"]


def test_a_retry_that_goes_well_leaves_the_error_to_be_read() -> None:
    found = fold(event("attempt"), event("failed"), event("attempt"), event("training"), event("finished"))
    assert (found.attempts, found.failures, found.error) == (2, 1, "worker 1: gone")
    assert found.state == "finished"


def test_giving_up_says_why() -> None:
    found = fold(event("attempt"), event("failed"), event("attempt"), event("gave_up"))
    assert (found.state, found.failures, found.error) == ("failed", 2, "worker 0: ValueError: boom (twice)")


TROUBLES = ("checkpoint_failed", "checkpoint_missing", "checkpoints_unreadable", "export_failed")


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("cure", ["checkpoint", "training", "finished"])
def test_a_problem_is_one_until_it_is_over(trouble: str, cure: str) -> None:
    assert fold(event("training"), event(trouble)).problem
    assert fold(event("training"), event(trouble), event(cure)).problem is None


def test_what_is_waited_for_is_over_when_training_begins() -> None:
    assert fold(event("waiting")).waiting_for == "2 workers are to start, and there is room for 1"
    assert fold(event("waiting"), event("training")).waiting_for is None


def test_the_file_is_whole_and_up_to_date(tmp_path: Path) -> None:
    file = StatusFile(tmp_path)
    file.add(event("attempt"))
    file.add(event("training"))
    file.write(Progress(60, 200, 1000.0, 12.5))
    found = json.loads((tmp_path / "status.json").read_text())
    assert RunStatus.model_validate(found).model_dump() == found
    assert (found["state"], found["step"], found["total_steps"]) == ("running", 60, 200)
    assert (found["percent"], found["eta_seconds"]) == (30.0, 12.5)
    assert found["updated_at"] > 0
    file.add(event("checkpoint"))
    file.write(None)
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["checkpoint_step"], found["step"]) == (100, 60)


def test_a_full_disk_is_no_reason_to_stop_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    file = StatusFile(tmp_path)
    file.add(event("attempt"))
    with monkeypatch.context() as patch:
        patch.setattr(status.files, "write_json", full)
        file.write(None)
    file.write(None)
    assert json.loads((tmp_path / "status.json").read_text())["attempts"] == 1


def test_events_of_a_real_journal_are_understood(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path)
    for kind, facts in EXAMPLES.items():
        journal.write(kind, **facts)
    assert fold(*journal.read()).attempts == 1
