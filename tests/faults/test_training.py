"""A training on two workers killed at file operations and at any time: it goes on and ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.run_journal import RunJournal
from bco_ray.storage.stores import DirectoryStore
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective
from bco_ray.training.watchdog import EXIT_CODE

TRAINER = Path(__file__).parent / "trainer.py"
IMPORTS = (
    "bco_ray.training.loop", "bco_ray.training.deepspeed_engine", "transformers.models.llama.modeling_llama",
    "transformers.conversion_mapping", "transformers.generation", "deepspeed.runtime.zero.muon.muon_optimizer",
)  # fmt: skip
"""And what those import only when it is first used, which would be most of a short run's time."""

STEPS = 20


@dataclass
class Training:
    """Runs of one setup, each in a directory of its own."""

    faults: Any
    nursery: Any
    base: TrainSetup

    def new(self) -> Path:
        """A run that has not begun."""
        run = self.faults.root / uuid.uuid4().hex[:8]
        run.mkdir()
        setup = dataclasses.replace(self.base, run=str(run))
        run.with_suffix(".json").write_text(json.dumps(setup.as_dict()))
        return run

    def start(self, run: Path, workers: int = 2) -> list[Any]:
        """Its worker processes."""
        store = self.faults.own / f"store-{uuid.uuid4().hex[:8]}"
        setup = run.with_suffix(".json")
        return [self.nursery.start(TRAINER, setup, str(rank), str(workers), store) for rank in range(workers)]

    def finish(self, run: Path, workers: int = 2) -> None:
        """To the end, undisturbed."""
        for child in self.start(run, workers):
            assert child.wait() == 0, child.output


@pytest.fixture
def training(faults: Any, tmp_path: Path) -> Training:
    model = write_tiny_model(tmp_path / "model")
    write_scored(tmp_path / "scored", model, chosen=40, rejected=80, shards=3)
    objective = Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5)
    setup = TrainSetup(
        scored=str(tmp_path / "scored"), model=str(model), run="", adapter=None, objective=objective,
        half_life_rows=30, learning_rate=1e-3, lr_scheduler="linear", warmup_ratio=0.1, weight_decay=0.01,
        max_grad_norm=1.0, epochs=1, rows_per_step=6, max_tokens_per_micro_batch=40, zero_stage=2, bf16=False,
        device="cpu", checkpoint_every=3, checkpoint_keep=2, seed=3,
    )  # fmt: skip
    return Training(faults, faults.nursery(*IMPORTS), setup)


def result(run: Path) -> dict[str, Any]:
    """All that a run leaves that somebody could see, but for times."""
    weights = load_file(next((run / "model").glob("*.safetensors")))
    timeless = {"seconds", "tokens_per_second"}
    steps = [{k: v for k, v in row.items() if k not in timeless} for row in MetricsLog(run / "metrics.jsonl").read()]
    outcome = json.loads((run / "outcome.json").read_text())
    return {"weights": {name: t.tolist() for name, t in weights.items()}, "steps": steps, "outcome": outcome}


def test_killed_before_file_operations(faults: Any, training: Training) -> None:
    whole = training.new()
    training.finish(whole)
    operations = [o for o in faults.operations() if o.path.startswith(whole.name)]
    wanted = result(whole)
    fired = 0
    for nth in faults.sample(range(1, len(operations) + 1)):
        run = training.new()
        faults.operations()
        faults.arm(faults.before(nth, path=f"^{run.name}/"))
        fired += -signal.SIGKILL in end(faults, training.start(run), both=faults.rng.random() < 0.5)
        faults.arm(None)
        training.finish(run)
        assert result(run) == wanted, f"killed before operation {nth}: {operations[nth - 1]}"
        check_checkpoints(run)
    faults.report("training", kills=fired, runs_with_the_same_bits=fired)
    assert fired


def test_killed_between_the_last_commit_and_the_deletion_it_allows(faults: Any, training: Training) -> None:
    """Nothing is left to train, and still no more checkpoints are kept than were asked for."""
    training.base = dataclasses.replace(training.base, checkpoint_every=STEPS // 2, checkpoint_keep=1)
    run = training.new()
    faults.arm(faults.before(path=f"^{run.name}/checkpoints/{STEPS // 2:08d}/manifest.json$", operation="remove"))
    assert -signal.SIGKILL in end(faults, training.start(run), both=True)
    faults.arm(None)
    store = CheckpointStore(DirectoryStore(run / "checkpoints"))
    assert store.steps() == [STEPS // 2, STEPS]
    training.finish(run)
    assert store.steps() == [STEPS]


def test_killed_at_any_time(faults: Any, training: Training) -> None:
    """One worker or both, again and again until each run is through."""
    whole = training.new()
    began = time.monotonic()
    training.finish(whole)
    seconds = time.monotonic() - began
    kills = runs = 0
    while kills < faults.points:
        run = training.new()
        for _ in range(3):
            children = training.start(run)
            pause = faults.rng.uniform(0.5, 1) * seconds
            faults.until(lambda children=children: all(child.ended() is not None for child in children), pause)
            kills += any(child.ended() is None for child in children)
            children[faults.rng.randrange(2)].kill()
            end(faults, children, both=faults.rng.random() < 0.5)
        training.finish(run)
        assert result(run) == result(whole)
        check_checkpoints(run)
        runs += 1
    faults.report("training", kills=kills, runs_with_the_same_bits=runs)


def end(faults: Any, children: list[Any], *, both: bool) -> list[int]:
    """Their statuses. When one has ended, the other is killed too (`both`), or finds out by itself."""
    if both:
        assert faults.until(lambda: any(child.ended() is not None for child in children), 60)
        [child.kill() for child in children]
    return [child.wait() for child in children]


def check_checkpoints(run: Path) -> None:
    """Whole ones only, at most two of them, the last one at the end (one that came too soon may have been skipped)."""
    store = CheckpointStore(DirectoryStore(run / "checkpoints"))
    assert store.steps()[-1] == STEPS
    assert len(store.steps()) <= 2
    for step in store.steps():
        manifest = store.manifest(step)
        for name in manifest.shards:
            with store.verified(manifest, name) as path:
                assert path.is_file()


def test_nobody_waits_for_ever_for_a_worker_that_hangs(faults: Any, training: Training) -> None:
    """One of two is stopped; the other finds that nothing moves, says so and ends."""
    training.base = dataclasses.replace(training.base, epochs=5)
    whole, run = training.new(), training.new()
    training.finish(whole)
    setup = run.with_suffix(".json")
    patient = setup.read_text()
    setup.write_text(json.dumps({**json.loads(patient), "hang_seconds": 3}))
    paused, other = training.start(run)
    assert faults.until(lambda: len(MetricsLog(run / "metrics.jsonl").read()) > 5, 60)
    os.kill(paused.pid, signal.SIGSTOP)
    assert other.wait(60) == EXIT_CODE, other.output
    paused.kill()
    (event,) = (event for event in RunJournal(run).read() if event["event"] == "worker_failed")
    assert event["kind"] == "hung"
    setup.write_text(patient)
    training.finish(run)
    assert result(run) == result(whole)
    faults.report("training", hung=1, runs_with_the_same_bits=1)


def test_two_one_two_workers(training: Training) -> None:
    """Killed on two workers, gone on alone, killed again, ended on two: the same trajectory but for rounding."""
    whole, run = training.new(), training.new()
    training.finish(whole)
    for workers, steps in ((2, "0000000[6-9]"), (1, "0000001[2-9]")):
        training.faults.arm(training.faults.before(operation="rename", path=f"{steps}/manifest.json$"))
        assert -signal.SIGKILL in end(training.faults, training.start(run, workers), both=True)
    training.finish(run)
    assert [e["workers"] for e in RunJournal(run).read() if e["event"] == "training"] == [2, 1, 2]
    got, wanted = result(run), result(whole)
    assert [row["step"] for row in got["steps"]] == list(range(STEPS))
    for name in ("loss", "grad_norm", "delta"):
        numbers = [[row[name] for row in found["steps"]] for found in (got, wanted)]
        torch.testing.assert_close(*map(torch.tensor, numbers), rtol=1e-4, atol=1e-5)
    for name, values in wanted["weights"].items():
        torch.testing.assert_close(torch.tensor(got["weights"][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)
