"""Training on Ray Train: a worker group is one TorchTrainer around `loop.train`. Only this and `room` import ray.

Checkpoints and retries are ours: Ray's own would know neither whether a failure is worth another try nor how many
workers there is room for, and its resizes throw away the steps since the last checkpoint. So `fit` gets one failure,
and `attempts` decides. The result travels as the train function's return value.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from bco_ray.errors import BcoError, StorageError
from bco_ray.storage import files, locations
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import configure_logging
from bco_ray.training.attempt import StaleAttemptError
from bco_ray.training.attempts import Attempts, Failed, Finished, Limits
from bco_ray.training.failures import Kind, Symptom
from bco_ray.training.room import Places, Resources, room_for
from bco_ray.training.setup import TrainSetup
from bco_ray.training.stopping import stop_on_sigterm
from bco_ray.training.watchdog import collective_seconds

RESIZE_SECONDS = 60.0
"""How often an elastic run looks for more room."""

_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Exit|Interrupt)): (.*)$", re.MULTILINE)
_EXIT = re.compile(
    r"Worker exit (?:type|detail): (.+?)(?= Worker exit detail| Some common causes| There are some|$)", re.M
)


def run_training(
    setup: TrainSetup, *, num_workers: tuple[int, int], resources_per_worker: Resources, max_failures: int
) -> dict[str, Any]:
    """Train on the connected cluster; blocks until the model is in `<run>/model`. Returns the final loop state.

    `num_workers`: fewest and most. Raises TrainingError with the first real error if training failed for good.
    """
    least, most = num_workers

    def start(setup: TrainSetup, workers: int) -> FitGroup:
        return FitGroup(setup, workers, resources_per_worker)

    limits = Limits(least, most, max_failures, RESIZE_SECONDS)
    places = Places(resources_per_worker)
    return Attempts(setup, limits, start, lambda: room_for(resources_per_worker) + places.held(), ask=places.ask).run()


@dataclass
class FitGroup:
    """`fit` in a thread, so that whoever started it can watch, and be interrupted."""

    setup: TrainSetup
    workers: int
    resources: Resources
    _ended: list[Finished | Failed | BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._fit, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """See `attempts.Group`. On an event: a thread whose `join` is interrupted may be taken for a dead one."""
        return self._over.wait(seconds)

    def result(self) -> Finished | Failed:
        """See `attempts.Group`. Raises what is no failure of the training (no cluster, a refused argument)."""
        ended = self._ended[0]
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _fit(self) -> None:
        try:
            outcome: dict[str, Any] = _trainer(self).fit().return_value
        except ray.train.TrainingFailedError as error:
            self._ended.append(Failed(tuple(_symptoms(error))))
        except ray.exceptions.RayError as error:
            self._ended.append(Failed((Symptom("", f"Ray Train's controller is gone: {error}", kind="lost"),)))
        except OSError as error:
            self._ended.append(Failed((Symptom(type(error).__name__, str(error), kind="storage"),)))
        except BaseException as error:  # noqa: BLE001  `result` raises it where somebody waits
            self._ended.append(error)
        else:
            self._ended.append(Finished(outcome["state"], outcome["stopped"]))
        finally:
            self._over.set()


def _trainer(group: FitGroup) -> TorchTrainer:
    setup, has_gpu = group.setup, bool(group.resources.get("GPU"))
    filesystem, place = locations.filesystem_of(f"{setup.run}/ray")
    return TorchTrainer(
        _worker,
        train_loop_config=setup.as_dict(),
        torch_config=_Torch(backend="nccl" if has_gpu else "gloo", timeout_s=collective_seconds(setup.hang_seconds)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=has_gpu, resources_per_worker=group.resources
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{int(time.time())}-{uuid.uuid4().hex[:6]}",
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            worker_runtime_env={"env_vars": _worker_environment(setup, group.resources)},
        ),
    )


class _TorchBackend(ray.train.torch.config._TorchBackend):  # type: ignore[misc]
    """Ray's own, and SIGTERM means a checkpoint: its handler can only be set where a worker's actor runs its tasks."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Ray's hook."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(stop_on_sigterm)


class _Torch(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _TorchBackend


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """On each worker. What fails is written down first, and whether it would fail again."""
    from bco_ray.training.gang import TorchGang
    from bco_ray.training.loop import train

    configure_logging(run=files.path_of(config["run"]).name)
    if config["device"] == "cuda":
        torch.cuda.set_device(ray.train.torch.get_device())
    gang, journal = TorchGang(), RunJournal(files.path_of(config["run"]))
    journal.write("placed", rank=gang.rank, workers=gang.size, host=socket.gethostname())
    try:
        outcome = train(TrainSetup.from_dict(config), gang, notices=(_preempted,))
    except StaleAttemptError:  # what is written down is the later attempt's
        raise
    except Exception as error:
        refused = isinstance(error, BcoError) and not isinstance(error, StorageError)
        told = {"kind": "refused" if refused else None, "type": type(error).__name__, "error": str(error)[:2000]}
        journal.write("worker_failed", rank=gang.rank, **told)
        raise
    return {"state": outcome.state.as_json(), "stopped": outcome.stopped}


def _preempted() -> bool:
    """Whether a node of the group is being taken away. Ray's public question is a collective; this is what it asks."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _worker_environment(setup: TrainSetup, resources: Resources) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
    return environment if resources.get("GPU") else {**environment, "DS_ACCELERATOR": "cpu"}


def _symptoms(error: Exception) -> list[Symptom]:
    """One per worker that failed, else one of the controller's."""
    if isinstance(error, ray.train.ControllerError):
        failure = error.controller_failure
        kind: Kind = "no_room" if type(failure).__name__ == "WorkerGroupStartupTimeoutError" else "lost"
        return [Symptom(type(failure).__name__, str(failure), kind=kind)]
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return [Symptom(type(error).__name__, str(error), kind="lost")]
    return [_symptom(rank, failure) for rank, failure in failures.items()]


def _symptom(rank: int, failure: Exception) -> Symptom:
    failure = getattr(failure, "health_check_failure", failure)  # what Ray Train met when it asked how the worker is
    text = str(failure)
    if isinstance(failure, ray.exceptions.RayActorError) or _EXIT.search(text):
        return Symptom("", f"its process is gone: {_exit_of(text)}", rank, time.time(), _kind_of_loss(failure))
    raised = _RAISED.findall(text)
    name, message = raised[-1] if raised else (type(failure).__name__, text)
    return Symptom(name, message, rank, time.time())


def _kind_of_loss(failure: Exception) -> Kind:
    """Ray's own memory monitor says so when it was the one who ended it."""
    return "out_of_memory" if re.search("OutOfMemory|OUT_OF_MEMORY", f"{type(failure).__name__} {failure}") else "lost"


def _exit_of(text: str) -> str:
    """Ray's own words, without its list of guesses."""
    details = [found.strip(" .") for found in _EXIT.findall(text)]
    return ", ".join(details) if details else text.strip().splitlines()[0]
