"""The steps of a run, passed on to TensorBoard, Weights & Biases or MLflow, beside the training.

`metrics.jsonl` is the queue: every tracker has a thread that reads what the loop has appended and passes it on, from
the first step that the tracker does not have yet. So a tracker that is slow or down costs training nothing, and a
resumed run repeats no step and makes up for those that were never passed on.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from bco_ray.errors import SpecError, TrainingError
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath
from bco_ray.telemetry import logger
from bco_ray.training.metrics import MetricsLog, MetricsTail

POLL_SECONDS = 0.5
CLOSE_SECONDS = 30.0
"""How long a run that has ended waits for its trackers to take the last steps."""

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Where the numbers of a run go. All calls come from one thread, which may be kept waiting."""

    next_step: int
    """The first step that it does not have yet, when it is opened."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one step; steps come in order."""

    def close(self, *, failed: bool = False) -> None:
        """Hand over what is pending, and say how the run ended."""


def require(names: Sequence[str]) -> None:
    """Raises TrainingError if a tracker's package, or the address it needs, is not there."""
    missing = [name for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise TrainingError(
            f"output.trackers: {', '.join(missing)}: missing; pip install 'bco-ray[trackers]' where training runs."
        )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrainingError("output.trackers: mlflow: set MLFLOW_TRACKING_URI to your server where training runs.")


@contextmanager
def tracking(log: MetricsLog, names: Sequence[str]) -> Iterator[None]:
    """While the body appends to `log`, each tracker follows; after it, they have CLOSE_SECONDS to catch up."""
    followers = [_Follower(name, log.path) for name in dict.fromkeys(names)]
    failed = True
    try:
        yield
        failed = False
    finally:
        deadline = time.monotonic() + CLOSE_SECONDS
        for follower in followers:
            follower.end(failed=failed)
        for follower in followers:
            follower.wait(deadline - time.monotonic())


class _Follower:
    """One tracker's thread. Whatever goes wrong in it is one warning."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._ended = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def end(self, *, failed: bool) -> None:
        """No more steps will come."""
        self._failed = failed
        self._ended.set()

    def wait(self, seconds: float) -> None:
        """Until all is passed on, or time is up."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            logger.warning("%s has not taken all steps in time; they are all in %s", self._name, self._path)

    def _run(self) -> None:
        try:
            self._follow(TRACKERS[self._name](self._path.parent))
        except Exception as error:  # noqa: BLE001  a tracker is never a reason to stop training
            reason = f"{type(error).__name__}: {error}"
            logger.warning("%s gets no more steps (%s); they are all in %s", self._name, reason, self._path)

    def _follow(self, tracker: Tracker) -> None:
        tail, next_step, last_look = MetricsTail(self._path), tracker.next_step, False
        while not last_look:
            last_look = self._ended.wait(POLL_SECONDS)
            for row in tail.read():
                if row["step"] >= next_step:
                    tracker.log(row["step"], numbers_of(row))
                    next_step = row["step"] + 1
        tracker.close(failed=self._failed)


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What is plotted of a row: all but the step itself and values that are absent."""
    return {key: value for key, value in row.items() if value is not None and key not in ("step", "total_steps")}


class TensorBoard:
    """Event files in `<run>/tensorboard`, one record per step; tensorboardX writes them, TensorBoard shows them."""

    def __init__(self, run: Path) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        directory = _local(run, "tensorboard") / "tensorboard"
        directory.mkdir(exist_ok=True)
        self._event, self._summary = Event, Summary
        self.next_step = 1 + max((event.step for event in self._events_in(directory)), default=-1)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{self.next_step}"
        self._records = RecordWriter(str(directory / name))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _events_in(self, directory: Path) -> Iterator[Any]:
        """Those of all files; a last record that was cut off does not count."""
        for path in sorted(directory.glob("events.out.tfevents.*")):
            data, at = path.read_bytes(), 0
            while at + 12 <= len(data):  # a record: length, its checksum, data, its checksum
                (length,) = struct.unpack_from("<Q", data, at)
                if at + length + 16 > len(data):
                    break
                event = self._event.FromString(data[at + 12 : at + 12 + length])
                if event.HasField("summary"):
                    yield event
                at += length + 16

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One record, so that a step is there whole or not at all."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self, *, failed: bool = False) -> None:
        """Close the file."""
        self._records.close()


class WeightsAndBiases:
    """One W&B run per run directory, wherever WANDB_* say. `<run>/trackers/wandb.json` remembers its id and step.

    The server says how far it is, but nothing does in offline mode.
    """

    def __init__(self, run: Path) -> None:
        import wandb

        self._notes = run / "trackers" / "wandb.json"
        noted = files.read_json(self._notes) if self._notes.is_file() else {}
        self._id = noted.get("id") or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
        self._note(noted.get("next_step", 0))
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", run.name),
            dir=os.environ.get("WANDB_DIR") or str(_local(run, "wandb")),
            config=spec_of(run),
            settings=wandb.Settings(console="off"),
        )
        self.next_step = max(noted.get("next_step", 0), self._run.starting_step)

    def _note(self, next_step: int) -> None:
        files.write_json(self._notes, {"id": self._id, "next_step": next_step})

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hands the step to W&B's own process, which sends it."""
        self._run.log(dict(numbers), step=step)
        self._note(step + 1)

    def close(self, *, failed: bool = False) -> None:
        """Waits until all is sent."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """One MLflow run per run directory, on MLFLOW_TRACKING_URI. `<run>/trackers/mlflow.json` remembers its id."""

    LAST = "epoch"
    """Of a step's numbers the one sent last: a step that has it has them all."""

    def __init__(self, run: Path) -> None:
        import mlflow

        notes = run / "trackers" / "mlflow.json"
        noted = files.read_json(notes) if notes.is_file() else {}
        self._mlflow = mlflow
        self._id = mlflow.start_run(run_id=noted.get("id"), run_name=run.name).info.run_id
        if not noted:
            files.write_json(notes, {"id": self._id})
            mlflow.log_params(dict(_flat(spec_of(run))))
        logged = mlflow.MlflowClient().get_metric_history(self._id, self.LAST)
        self.next_step = 1 + max((metric.step for metric in logged), default=-1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One request, answered before the next."""
        ordered = sorted(numbers.items(), key=lambda item: item[0] == self.LAST)
        self._mlflow.log_metrics(dict(ordered), step=step, run_id=self._id)

    def close(self, *, failed: bool = False) -> None:
        """Ends the run as FINISHED or FAILED."""
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


def _local(run: Path, tracker: str) -> Path:
    """Raises SpecError where its library would have to write into an object store."""
    if isinstance(run, ObjectPath):
        raise SpecError(
            f"output.trackers: {tracker} writes into the run's directory, and {run} is in an object store. "
            f"Use {'mlflow, or set WANDB_DIR' if tracker == 'wandb' else 'wandb or mlflow'}."
        )
    return run


TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def spec_of(run: Path) -> dict[str, Any]:
    """The resolved spec of a run directory, for comparing runs; empty where training was started without one."""
    path = run / "spec.resolved.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`training.seed`, 0), ..."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
