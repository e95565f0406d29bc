"""Asked to stop, by a file or by SIGTERM: a checkpoint, a clean end, and the same bits afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.stores import DirectoryStore
from bco_ray.training import stopping
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.metrics import MetricsTail
from bco_ray.training.setup import TrainSetup
from bco_ray.training.stopping import StopRequests, ask_to_stop, stop_on_sigterm, withdraw


def assert_identical(got: Any, wanted: Any) -> None:
    keys = ("step", "loss", "delta", "grad_norm", "rewards/chosen", "learning_rate")
    assert [[m[k] for k in keys] for m in got.metrics] == [[m[k] for k in keys] for m in wanted.metrics]
    for name, tensor in wanted.weights.items():
        assert torch.equal(got.weights[name], tensor), name
    assert got.outcome == wanted.outcome


def last_checkpoint(run: Path | str) -> int:
    return max(CheckpointStore(DirectoryStore(Path(run) / "checkpoints")).steps())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked for at every step."""
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.0)


class TestRequests:
    def test_worker_0_alone_looks_for_the_file(self, tmp_path: Path, at_once: None) -> None:
        requests = [StopRequests(tmp_path, rank) for rank in range(2)]
        assert [r.asked() for r in requests] == [False, False]
        ask_to_stop(tmp_path, "for a test")
        assert [r.asked() for r in requests] == [True, False]

    def test_once_yes_is_always_yes(self, tmp_path: Path, at_once: None) -> None:
        requests = StopRequests(tmp_path, 0)
        ask_to_stop(tmp_path, "for a test")
        assert requests.asked()
        withdraw(tmp_path)
        withdraw(tmp_path)
        assert requests.asked()
        assert not StopRequests(tmp_path, 0).asked()

    def test_it_does_not_look_at_every_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stopping, "POLL_SECONDS", 3600.0)
        requests = StopRequests(tmp_path, 0)
        assert not requests.asked()
        ask_to_stop(tmp_path, "for a test")
        assert not requests.asked()

    def test_notices_are_asked_on_every_worker(self, tmp_path: Path) -> None:
        answers = [False, False, True]
        requests = StopRequests(tmp_path, 3, (lambda: False, lambda: answers.pop(0)))
        assert [requests.asked() for _ in range(4)] == [False, False, True, True]

    def test_storage_that_does_not_answer_asks_for_nothing(
        self, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(_: Path) -> bool:
            raise OSError("Input/output error")

        requests = StopRequests(tmp_path, 0)
        monkeypatch.setattr(Path, "exists", failing)
        assert not requests.asked()


@pytest.fixture
def own_sigterm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(stopping, "_terminated", type(stopping._terminated)())
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_in_this_process(own_sigterm: None, tmp_path: Path) -> None:
    stop_on_sigterm()
    requests = StopRequests(tmp_path, 1)
    assert not requests.asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.asked()


def test_a_file_stops_a_run_which_goes_on_with_the_same_bits(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], at_once: None
) -> None:
    whole = run_here(make_setup("stop-file-whole"))
    setup = make_setup("stop-file")
    run = Path(setup.run)
    for step in (5, 12):
        hook = lambda done, at=step: ask_to_stop(run, "for a test") if done == at else None  # noqa: E731
        outcome = train(setup, SoloGang(), after_step=hook)
        assert outcome.stopped
        assert not (run / "model").exists()
        assert last_checkpoint(run) == outcome.state.next_step == step + 3  # asked in the next, known in the one after
        withdraw(run)
    assert_identical(run_here(setup), whole)


def test_asked_in_the_last_steps_it_simply_ends(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], at_once: None
) -> None:
    setup = make_setup("stop-late")
    trained = run_here(setup, after_step=lambda done: ask_to_stop(Path(setup.run), "late") if done == 17 else None)
    assert len(trained.metrics) == 20
    assert trained.weights


def test_sigterm_to_a_process_of_its_own(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> None:
    whole = run_here(make_setup("term-whole", epochs=20))
    setup = make_setup("term", epochs=20)
    run = Path(setup.run)
    (run / "setup.json").write_text(json.dumps(setup.as_dict()))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "bco_ray.training.alone", str(run / "setup.json")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        tail, seen, deadline = MetricsTail(run / "metrics.jsonl"), 0, time.monotonic() + 60
        while seen < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
            seen += len(tail.read())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    step = last_checkpoint(run)
    assert 5 < step < 400
    assert f"stopped after step {step - 1}" in said
    assert not (run / "model").exists()
    assert_identical(run_here(setup), whole)


def test_sigterm_to_one_of_two_workers_stops_both(
    make_setup: Callable[..., TrainSetup], run_processes: Callable[..., Any]
) -> None:
    numbers = {"zero_stage": 2, "max_tokens_per_micro_batch": 40}
    whole, setup = make_setup("one-of-two-whole", **numbers), make_setup("one-of-two", **numbers)
    run_processes([setup], 2, terminate_after=6)
    assert last_checkpoint(setup.run) == 9
    assert not (Path(setup.run) / "model").exists()
    wanted, got = run_processes([whole, setup], 2)
    assert_identical(got, wanted)
