"""One tiny model and its scored rows, shared by the training tests; runs in this process or under torchrun."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bco_ray.objective import LOSSES, SourceOffsets
from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.run_journal import RunJournal
from bco_ray.storage.stores import DirectoryStore
from bco_ray.testing.faulty_store import FaultyStore
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training import assembling, loop
from bco_ray.training.background import Backoff
from bco_ray.training.checkpoint import Checkpoints
from bco_ray.training.engine import Engine
from bco_ray.training.fragments import SavedState
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

BY_SOURCE = SourceOffsets({"web": 0.4, "app": -0.7}, other=0.2)
"""Deltas of the sources that `write_scored` has, as large as rewards become in these runs."""

QUICK = Backoff(first_seconds=0.005, longest_seconds=0.02)
STOPPABLE = Path(__file__).with_name("stoppable.py")


@dataclass(frozen=True)
class Trained:
    """What a run left: metrics by step and the exported weights."""

    directory: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return MetricsLog(self.directory / "metrics.jsonl").read()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(next((self.directory / "model").glob("*.safetensors")))

    def weights_at(self, step: int) -> dict[str, torch.Tensor]:
        """Flat float32 weights by name, from the checkpoint that one worker without ZeRO made after `step` steps."""
        tensors = load_file(next((self.directory / "checkpoints" / f"{step:08d}").glob("*.safetensors")))
        return {key.partition("|")[0]: tensor for key, tensor in tensors.items() if "|weight|" in key}

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.directory / "outcome.json").read_text())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model directory, scored directory): 120 rows, a third of them thumbs-up."""
    root = tmp_path_factory.mktemp("training")
    model = write_tiny_model(root / "model", hidden=32, layers=2)
    write_scored(root / "scored", model, chosen=40, rejected=80, shards=3)
    return model, root / "scored"


@pytest.fixture(scope="session")
def make_setup(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainSetup]:
    """A setup of 20 steps of 6 rows in a directory of its own; keywords change fields."""
    model, scored = world
    root = tmp_path_factory.mktemp("runs")

    def make(name: str, **changes: Any) -> TrainSetup:
        base = TrainSetup(
            scored=str(scored),
            model=str(model),
            run=str(root / name),
            adapter=None,
            objective=Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5),
            half_life_rows=30,
            learning_rate=1e-3,
            lr_scheduler="linear",
            warmup_ratio=0.1,
            weight_decay=0.01,
            max_grad_norm=1.0,
            epochs=1,
            rows_per_step=6,
            max_tokens_per_micro_batch=4096,
            zero_stage=0,
            bf16=False,
            device="cpu",
            checkpoint_every=1000,
            checkpoint_keep=2,
            seed=3,
        )
        (root / name).mkdir()
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def run_here() -> Callable[..., Trained]:
    """Train in this process."""

    def run(setup: TrainSetup, **options: Any) -> Trained:
        train(setup, SoloGang(), **options)
        return Trained(Path(setup.run))

    return run


@pytest.fixture(scope="session")
def run_processes() -> Callable[..., Trained]:
    """Train under torchrun with real gloo."""
    return _run_processes


def _run_processes(
    setups: list[TrainSetup], workers: int, *, stop_after: int | None = None, terminate_after: int | None = None
) -> list[Trained]:
    """All of them one after another in the same processes. `stop_after`: SIGKILL them after that step (0-based);
    `terminate_after`: SIGTERM to the last worker alone."""
    paths = [Path(setup.run) / "setup.json" for setup in setups]
    for path, setup in zip(paths, setups, strict=True):
        path.write_text(json.dumps(setup.as_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command += [str(STOPPABLE), *(str(-1 if step is None else step) for step in (stop_after, terminate_after))]
    command += map(str, paths)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if stop_after is None:
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        assert done.returncode != 0, "the run was to be killed"
    return [Trained(Path(setup.run)) for setup in setups]


@pytest.fixture
def restore(tmp_path: Path) -> Callable[..., None]:
    """Put shares (as `host_copy` gives them, one or a list) into an engine as after so many steps, through files."""

    def put(engine: Engine, shares: Any, steps: int) -> None:
        shares = [shares] if isinstance(shares, dict) else shares
        names = [str(tmp_path / f"share-{number}.safetensors") for number in range(len(shares))]
        for name, tensors in zip(names, shares, strict=True):
            save_file(tensors, name)
        with SavedState(names, lambda name: nullcontext(Path(name))) as saved:
            engine.restore(saved, steps)
        engine.settle()

    return put


@dataclass
class Storage:
    """The store that runs of this process keep their checkpoints in, and what their journals say."""

    store: FaultyStore
    patience_seconds: float = 60.0
    backoff: Backoff = QUICK

    def events(self, run: Path | str, *kinds: str) -> list[dict[str, Any]]:
        """Of these kinds, or all."""
        return [event for event in RunJournal(Path(run)).read() if not kinds or event["event"] in kinds]

    def wait_for(self, run: Path | str, kind: str, step: int) -> None:
        """Until such an event is there."""
        assert self.until(lambda: any(event["step"] == step for event in self.events(run, kind))), (kind, step)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Whether it comes true in a minute."""
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.002)
        return condition()

    def checkpoints(self, run: Path | str) -> CheckpointStore:
        """As they are on disk."""
        return CheckpointStore(DirectoryStore(Path(run) / "checkpoints"))


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Storage]:
    """A store that can be told to fail; tries follow each other at once."""
    found = Storage(FaultyStore(DirectoryStore(tmp_path)))

    def opened(uri: str) -> FaultyStore:
        found.store.inner = DirectoryStore(Path(uri))
        return found.store

    def made(*arguments: Any, **options: Any) -> Checkpoints:
        return Checkpoints(*arguments, **options, backoff=found.backoff, patience_seconds=found.patience_seconds)

    monkeypatch.setattr(assembling, "open_store", opened)
    monkeypatch.setattr(assembling, "Checkpoints", made)
    monkeypatch.setattr(loop, "Backoff", lambda: found.backoff)
    yield found
    found.store.heal()


@pytest.fixture(scope="session")
def two_workers(make_setup: Callable[..., TrainSetup]) -> dict[str, Trained]:
    """Runs on two gloo workers: the 20 steps under ZeRO 2, a LoRA in bfloat16 (`bf16-lora`), one with noisy labels
    (`noise`), every loss, and `by_source`: a delta per source.
    """
    setups = {"zero2": make_setup("two-zero2", zero_stage=2, max_tokens_per_micro_batch=40)}
    lora = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
    setups["bf16-lora"] = make_setup("two-lora", zero_stage=2, bf16=True, adapter=lora, learning_rate=1e-2, epochs=4)
    noisy = Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5, label_noise=0.2)
    setups["noise"] = make_setup("two-noise", objective=noisy, rows_per_step=12, max_tokens_per_micro_batch=50)
    for name, kind in LOSSES.items():
        numbers = Objective(beta=0.1, desirable_weight=kind.gain, undesirable_weight=kind.gain, loss=name)
        reference = "live" if kind.mismatched else "precomputed"
        setups[name] = make_setup(f"two-{name}", objective=numbers, reference=reference, rows_per_step=12,
                                  max_tokens_per_micro_batch=50)  # fmt: skip
    setups["by_source"] = make_setup("two-by-source", offsets=BY_SOURCE, rows_per_step=12,
                                     max_tokens_per_micro_batch=50)  # fmt: skip
    return dict(zip(setups, _run_processes(list(setups.values()), 2), strict=True))
