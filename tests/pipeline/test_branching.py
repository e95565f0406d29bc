"""A run that starts at another run's checkpoint: what it takes over, and when it must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config import dump_spec, load_spec
from bco_ray.errors import SpecError
from bco_ray.pipeline.branching import take_over_checkpoint
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.checkpoints import CheckpointStore
from bco_ray.storage.stores import open_store
from bco_ray.testing.checkpoints import write_checkpoint
from bco_ray.testing.tiny import write_tiny_model

Make = Any


@pytest.fixture
def make(tmp_path: Path) -> Make:
    write_tiny_model(tmp_path / "base")
    (tmp_path / "log.jsonl").write_text('{"prompt": "q", "completion": "a", "label": true}\n')

    def resolved(name: str, *overrides: str) -> ResolvedJob:
        (tmp_path / "spec.yaml").write_text(
            f"name: {name}\nmodel: {{base: {tmp_path}/base}}\ndata: {{feedback: {tmp_path}/log.jsonl}}\n"
            f"output: {{storage: {tmp_path}/store}}\n"
        )
        return resolve(load_spec(tmp_path / "spec.yaml", overrides))

    return resolved


@pytest.fixture
def source(make: Make) -> ResolvedJob:
    """A run with checkpoints of steps 2 and 4, and metrics of five steps."""
    job: ResolvedJob = make("first")
    job.run_directory.mkdir(parents=True)
    (job.run_directory / "spec.resolved.yaml").write_text(dump_spec(job.spec))
    (job.run_directory / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in range(5)))
    for step in (2, 4):
        write_checkpoint(job.checkpoint_place, step, identity=job.checkpoint_identity, attempt=3)
    return job


def checkpoints(job: ResolvedJob) -> CheckpointStore:
    return CheckpointStore(open_store(job.checkpoint_place))


def start(source: ResolvedJob, step: int) -> str:
    return f"training.start={source.run_directory.name}:{step}"


def test_it_has_the_checkpoint_for_its_own_and_the_steps_before_it(make: Make, source: ResolvedJob) -> None:
    job = make("second", start(source, 2), "training.learning_rate=1e-4", "training.num_workers=5")
    take_over_checkpoint(job)
    assert checkpoints(job).steps() == [2]
    manifest = checkpoints(job).manifest(2)
    assert manifest.identity == job.checkpoint_identity != source.checkpoint_identity
    with checkpoints(job).verified(manifest, manifest.shards[0]) as path:
        assert path.read_bytes() == b"weights" * 2
    assert [json.loads(line)["step"] for line in (job.run_directory / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
    ]
    assert checkpoints(source).steps() == [2, 4]


def test_what_it_has_made_itself_stays(make: Make, source: ResolvedJob) -> None:
    job = make("second", start(source, 2))
    take_over_checkpoint(job)
    checkpoints(source).discard(2)
    take_over_checkpoint(job)
    assert checkpoints(job).steps() == [2]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.beta=0.3", "another objective"),
        ("training.rows_per_step=7", "another training.rows_per_step"),
        ("training.seed=7", "another training.seed"),
        ("training.max_length=99", "another scored, training.max_length"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    make: Make, source: ResolvedJob, override: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        take_over_checkpoint(make("second", start(source, 2), override))


def test_one_that_is_not_there_is_named_with_those_that_are(make: Make, source: ResolvedJob, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no checkpoint of step 3; it has 2, 4"):
        take_over_checkpoint(make("second", start(source, 3)))
    with pytest.raises(SpecError, match="nobody: no such run"):
        take_over_checkpoint(make("second", "training.start=nobody:2"))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"prompt": "q", "completion": "b", "label": false}\n')
    with pytest.raises(SpecError, match="not what it was"):
        take_over_checkpoint(make("second", start(source, 2)))


def test_a_damaged_one_is_not_taken_over(make: Make, source: ResolvedJob) -> None:
    shard = next(Path(source.checkpoint_place).glob("00000002/*.safetensors"))
    shard.write_bytes(b"other")
    job = make("second", start(source, 2))
    with pytest.raises(SpecError, match="Take another step"):
        take_over_checkpoint(job)
    assert checkpoints(job).steps() == []


def test_the_start_is_part_of_the_address_only_where_there_is_one(make: Make, source: ResolvedJob) -> None:
    assert "start" not in make("first").run_identity["training"]
    assert make("first", start(source, 2)).run_directory != source.run_directory
    assert make("first", "training.learning_rate_multiplier=3").spec.training.learning_rate == pytest.approx(3e-6)
