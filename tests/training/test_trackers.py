"""Trackers for real: TensorBoard's event files, W&B offline, MLflow on a file store; whatever of them is installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bco_ray.errors import TrainingError
from bco_ray.telemetry import logger
from bco_ray.training import trackers
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.trackers import PACKAGES, numbers_of, require, tracking

EVENTS = pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX")


def row(step: int) -> dict[str, Any]:
    auc = None if step % 2 else 0.5
    return {"step": step, "total_steps": 20, "epoch": step / 20, "loss": 1 / (step + 1), "auc": auc}


def append(log: MetricsLog, steps: Iterable[int]) -> None:
    for step in steps:
        log.append(row(step))


def run_that_fails(log: MetricsLog, names: list[str], steps: int) -> None:
    with tracking(log, names):
        append(log, range(steps))
        raise TrainingError("diverged")


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    """Of a run directory that has a spec."""
    run = tmp_path / "bot-1a2b3c4d"
    run.mkdir()
    (run / "spec.resolved.yaml").write_text("name: bot\ntraining: {seed: 3}\n")
    return MetricsLog(run / "metrics.jsonl")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is warned of."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def events(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, numbers) of each record of all event files: length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
            at += length + 16
    return [(step, numbers) for step, numbers in found if numbers]


@EVENTS
def test_a_real_run_is_written_as_tensorboard_events(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]
) -> None:
    trained = run_here(make_setup("tracked", trackers=("tensorboard",)))
    written = events(trained.directory / "tensorboard")
    assert [step for step, _ in written] == list(range(20))
    for (_, numbers), metrics in zip(written, trained.metrics, strict=True):
        assert numbers == pytest.approx(numbers_of(metrics), rel=1e-6)


@EVENTS
def test_tensorboard_gets_each_step_once_across_a_resume(log: MetricsLog) -> None:
    """The last attempt was killed while it wrote step 9: that one is written again, steps 6 to 8 are not."""
    with tracking(log, ["tensorboard"]):
        append(log, range(10))
    (path,) = (log.path.parent / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    log.truncate(6)
    with tracking(log, ["tensorboard"]):
        append(log, range(6, 13))
    first, second = sorted(log.path.parent.glob("tensorboard/*"), key=lambda p: int(p.name.rpartition(".")[2]))
    assert first == path
    only_second = log.path.parent / "second"
    only_second.mkdir()
    second.rename(only_second / second.name)
    assert [step for step, _ in events(only_second)] == [9, 10, 11, 12]


@EVENTS
def test_steps_from_before_the_tracker_are_made_up_for(log: MetricsLog) -> None:
    append(log, range(5))
    with tracking(log, ["tensorboard"]):
        append(log, range(5, 7))
    written = events(log.path.parent / "tensorboard")
    assert [step for step, _ in written] == list(range(7))
    assert "auc" in written[0][1]
    assert "auc" not in written[1][1]


@EVENTS
def test_a_tracker_that_fails_is_one_warning(log: MetricsLog, warnings: list[str]) -> None:
    (log.path.parent / "tensorboard").write_text("in the way")
    with tracking(log, ["tensorboard"]):
        append(log, range(5))
    (warning,) = warnings
    assert "tensorboard gets no more steps (FileExistsError" in warning
    assert len(log.read()) == 5


@EVENTS
def test_a_tracker_that_hangs_is_left_behind(
    log: MetricsLog, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a pipe that nobody writes to."""
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    pipe = log.path.parent / "tensorboard" / "events.out.tfevents.0.pipe"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    with tracking(log, ["tensorboard"]):
        append(log, range(5))
    assert [w for w in warnings if "tensorboard has not taken all steps in time" in w]
    assert len(log.read()) == 5
    pipe.open("wb").close()


@EVENTS
def test_the_error_of_a_failed_run_comes_out_and_its_steps_are_there(log: MetricsLog) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        run_that_fails(log, ["tensorboard"], 3)
    assert [step for step, _ in events(log.path.parent / "tensorboard")] == [0, 1, 2]


def test_a_missing_package_is_refused_with_the_way_out() -> None:
    missing = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    with pytest.raises(TrainingError, match=rf"{missing[0]}.*pip install 'bco-ray\[trackers\]'"):
        require(missing)


def test_no_tracker_needs_nothing() -> None:
    require([])


def test_mlflow_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow-skinny (bco-ray[trackers])")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrainingError, match="MLFLOW_TRACKING_URI"):
        require(["mlflow"])


def test_mlflow_goes_on_in_the_same_run(
    log: MetricsLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny (bco-ray[trackers])")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(TrainingError):
        run_that_fails(log, ["mlflow"], 8)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    log.truncate(5)
    with tracking(log, ["mlflow"]):
        append(log, range(5, 11))
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / (step + 1)) for step in range(11)]
    assert (run.info.run_name, run.info.status) == ("bot-1a2b3c4d", "FINISHED")
    assert run.data.params == {"name": "bot", "training.seed": "3"}
    assert warnings == []


def test_wandb_offline_goes_on_in_the_same_run(
    log: MetricsLog, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    pytest.importorskip("wandb", reason="needs wandb (bco-ray[trackers])")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracking(log, ["wandb"]):
        append(log, range(8))
    log.truncate(5)
    with tracking(log, ["wandb"]):
        append(log, range(5, 11))
    assert warnings == []
    note = json.loads((log.path.parent / "trackers" / "wandb.json").read_text())
    written = sorted(log.path.parent.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.name for path in written} == {f"run-{note['id']}.wandb"}
    assert [step for path in written for step in wandb_steps(path)] == list(range(11))


def wandb_steps(path: Path) -> list[int]:
    """History steps in a `.wandb` file: a 7-byte header, then LevelDB's log format in 32 KiB blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, payload, steps = path.read_bytes(), 7, b"", []
    while at < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        payload, at = payload + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record, payload = Record.FromString(payload), b""
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
    return steps
