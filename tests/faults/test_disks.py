"""Nothing assumes a shared disk: a head and two nodes that have only a bucket in common go round the whole loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bco_ray.storage import files
from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.scored import load_scored
from bco_ray.storage.stores import open_store
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(600)]

VOTES = 120


def test_the_whole_loop(faults: Any, bucket: str, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    write_tiny_model(private / "base")
    votes = [{"prompt": f"Question {n % 30}?", "completion": f"{'Yes' if n % 2 else 'No'}, {n}.", "label": n % 2 == 0}
             for n in range(VOTES)]  # fmt: skip
    files.write_bytes(files.path_of(f"{bucket}/log/votes.jsonl"), "\n".join(map(json.dumps, votes)).encode())
    spec = {
        "name": "bot",
        "model": {"base": "base", "adapter": {"type": "lora", "r": 2}},
        "data": {"feedback": f"{bucket}/log/*.jsonl"},
        "scoring": {"num_workers": 2},
        "training": {
            "num_workers": 2, "resources_per_worker": {"CPU": 1, "trainer": 1}, "max_length": 64, "rows_per_step": 16,
            "checkpoint": {"every_steps": 3, "keep": 2},
        },
        "output": {"storage": f"{bucket}/storage"},
    }  # fmt: skip
    (private / "spec.yaml").write_text(json.dumps(spec))
    outcome = faults.run(Path(__file__).with_name("disks.py"), private, bucket, timeout_seconds=560)
    assert outcome.status == 0, outcome.output[-6000:]
    found = json.loads((private / "found.json").read_text())
    assert (found["version"], found["again"], found["said"]) == ("bot/1", "bot/1", "bot/1")
    assert found["directory"] == f"{bucket}/storage/models/bot/1"
    assert found["workers"] == [2]
    assert found["votes_exported"] == 1
    assert found["pinned"] == "['feedback:1']"
    assert_everything_is_there(files.path_of(f"{bucket}/storage"), files.path_of(found["run"]))
    faults.report("nodes without a shared disk", nodes=3, isolated=int(found["isolated"]), votes=VOTES)


def assert_everything_is_there(storage: Any, run: Any) -> None:
    (scored,) = (storage / "scored").iterdir()
    assert load_scored(scored).kept == VOTES
    files.verify_directory(scored)
    steps = [row["step"] for row in MetricsLog(run / "metrics.jsonl").read()]
    assert steps == list(range(len(steps)))
    assert len(steps) > 3
    assert CheckpointStore(open_store(f"{run}/checkpoints")).steps()
    there = {path.name for path in run.iterdir()}
    assert {"spec.resolved.yaml", "curves.png", "evaluation.json", "outcome.json", "status.json", "model"} <= there
    adapter = files.read_json(storage / "models" / "bot" / "1" / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == f"{storage}/models/base/1"
