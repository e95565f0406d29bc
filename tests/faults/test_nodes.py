"""A node is killed in the middle of an elastic training, and another comes: 2, 1, 2 workers, one trajectory."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bco_ray.storage import files
from bco_ray.storage.run_journal import Event, RunJournal
from bco_ray.storage.salt import SALT_VARIABLE
from bco_ray.storage.scored import load_scored
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

HERE = Path(__file__).parent
STEPS = 400


@pytest.fixture
def setup(faults: Any, tmp_path: Path) -> TrainSetup:
    """An elastic training of 400 steps."""
    (faults.root / "run").mkdir()
    model = write_tiny_model(tmp_path / "model")
    write_scored(tmp_path / "scored", model, chosen=40, rejected=80, shards=3)
    setup = TrainSetup(
        scored=str(tmp_path / "scored"), model=str(model), run=str(faults.root / "run"), adapter=None,
        objective=Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5), half_life_rows=30,
        learning_rate=1e-4, lr_scheduler="linear", warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=1.0,
        epochs=STEPS // 20, rows_per_step=6, max_tokens_per_micro_batch=40, zero_stage=2, bf16=False, device="cpu",
        checkpoint_every=10, checkpoint_keep=2, seed=3,
    )  # fmt: skip
    (tmp_path / "setup.json").write_text(json.dumps(setup.as_dict()))
    return setup


@pytest.fixture
def long_set(faults: Any) -> None:
    if faults.points < 12:
        pytest.skip("in the long set only: make soak")


def train_on_nodes(faults: Any, setup: TrainSetup, tmp_path: Path, how: str) -> list[Event]:
    """The events of the run, which is the same as on one machine."""
    outcome = faults.run(HERE / "nodes.py", tmp_path / "setup.json", how, timeout_seconds=380)
    assert outcome.status == 0, outcome.output[-4000:]
    whole = tmp_path / "whole"
    whole.mkdir()
    train(dataclasses.replace(setup, run=str(whole), zero_stage=0), SoloGang())
    events = RunJournal(Path(setup.run)).read()
    starts = [(event["workers"], event["step"]) for event in events if event["event"] == "training"]
    sizes = [workers for workers, _ in starts]
    assert (sizes[0], sizes[-1]) == (2, 2), sizes  # a busy machine may lose a beat and start once more in between
    grown = sizes.index(2, sizes.index(1))
    assert starts[grown][1] > starts[grown - 1][1] >= 20, "growing throws no step away"
    assert_same_trajectory(Path(setup.run), whole)
    return events


def test_a_node_goes_and_another_comes(faults: Any, setup: TrainSetup, tmp_path: Path) -> None:
    events = train_on_nodes(faults, setup, tmp_path, "kill")
    failures = [event for event in events if event["event"] == "failed"]  # on a busy machine perhaps more than one
    assert any(event["kind"] == "lost" and "is gone" in event["error"] for event in failures), failures
    faults.report("nodes", killed=1, added=1, steps_compared=STEPS)


def test_a_node_is_announced_to_go(faults: Any, long_set: None, setup: TrainSetup, tmp_path: Path) -> None:
    """By the cloud, whom `bco node watch` asks. The group stops with a checkpoint: no step is done twice."""
    events = train_on_nodes(faults, setup, tmp_path, "drain")
    assert not [event for event in events if event["event"] == "failed"]
    steps = [row["step"] for row in MetricsLog(Path(setup.run) / "metrics.jsonl").read()]
    assert steps == list(range(STEPS))
    faults.report("nodes", drained=1, added=1, steps_compared=STEPS)


def test_a_node_is_killed_while_a_log_is_scored(faults: Any, long_set: None, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base")
    votes = [{"prompt": f"Question {n % 300}?", "completion": f"{'Yes' if n % 7 else 'No'}, {n}.", "label": n % 3 == 0}
             for n in range(3000)]  # fmt: skip
    (tmp_path / "votes.jsonl").write_text("\n".join(json.dumps(vote) for vote in votes) + "\n")
    digests = []
    for name, command in (("nodes", [HERE / "scorer.py"]), ("one", [Path(sys.executable).with_name("bco"), "score"])):
        values = {
            "name": "tiny",
            "model": {"base": str(tmp_path / "base")},
            "data": {"feedback": str(tmp_path / "votes.jsonl")},
            "training": {"max_length": 64},
            "output": {"storage": str(tmp_path / name)},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(values))
        outcome = faults.run(
            *command, tmp_path / f"{name}.yaml", timeout_seconds=280, **{SALT_VARIABLE: "of both storages"}
        )
        assert outcome.status == 0, outcome.output[-4000:]
        (scored,) = (tmp_path / name / "scored").iterdir()
        assert load_scored(scored).kept == len(votes)
        digests.append({path.name: files.sha256(path) for path in scored.glob("part-*.parquet")})
    assert digests[0] == digests[1]
    faults.report("scoring", killed=1, rows=len(votes), shards_with_the_same_bytes=len(digests[0]))


def assert_same_trajectory(run: Path, whole: Path) -> None:
    got, wanted = (MetricsLog(path / "metrics.jsonl").read() for path in (run, whole))
    assert [row["step"] for row in got] == list(range(STEPS))
    for name, rounding in {"loss": 0.0, "grad_norm": 0.0, "delta": 1e-6}.items():
        numbers = [np.array([row[name] for row in rows]) for rows in (got, wanted)]
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=rounding, err_msg=name)
    for name, weight in load_file(whole / "model/model.safetensors").items():
        other = load_file(run / "model/model.safetensors")[name]
        assert float(torch.linalg.norm(other - weight) / torch.linalg.norm(weight)) < 1e-4, name
