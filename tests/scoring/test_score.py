"""A scoring run on Ray: books that balance, nothing computed twice (by another job, or after an interruption)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import DataError, SpecError
from bco_ray.schema import SCORED, Record
from bco_ray.scoring.parts import Caches
from bco_ray.scoring.reference import ReferenceModel
from bco_ray.scoring.score import ScoringJob, require_classes, score
from bco_ray.scoring.spread import SHARDS_PER_TASK, on_ray
from bco_ray.scoring.weighing import Weighing, load_classifier
from bco_ray.storage import files
from bco_ray.storage.scored import ScoredManifest
from bco_ray.testing.records import write_records

Make = Callable[..., Record]
TOO_LONG = "long " * 50


def job_for(model: Path, storage: Path, name: str = "a", **changes: Any) -> ScoringJob:
    job = ScoringJob(
        directory=storage / "scored" / name,
        inputs={"name": name},
        caches=Caches(storage / "reference" / "logps", storage / "reference" / "embeddings"),
        model=ReferenceModel(str(model), "float32", "cpu", max_tokens=200, threads=1),
        tokenizer=str(model),
        max_length=60,
        validation=0.2,
        weighing=Weighing("on", "positive", 0.5, 10.0),
        num_workers=(1, 1),
        num_gpus=0,
    )
    return replace(job, **changes)


def votes(record: Make, count: int = 40) -> list[Record]:
    """Half up, half down, all on prompts of their own."""
    return [record(f"q{n}", id=f"v{n}", label=n % 2 == 0) for n in range(count)]


def without_weights(model: Path, directory: Path) -> Path:
    """Its tokenizer works; whoever loads the model fails."""
    shutil.copytree(model, directory)
    (directory / "model.safetensors").unlink()
    return directory


def quiet(*_: object) -> None:
    pass


def run(records: Path, job: ScoringJob) -> ScoredManifest:
    return score(records, job, quiet)


def rows_of(job: ScoringJob, manifest: ScoredManifest) -> pa.Table:
    return pa.concat_tables([pq.read_table(job.directory / shard.file) for shard in manifest.shards])


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_then_another_job_then_a_longer_log(model: Path, tmp_path: Path, record: Make) -> None:
    old = votes(record)
    write_records(tmp_path / "records", [*old, record(TOO_LONG)], bits=1, drops={"neutral": 3, "too_long": 1})
    job = job_for(model, tmp_path)
    steps: list[tuple[float, float | None]] = []
    manifest = score(tmp_path / "records", job, lambda done, total, _: steps.append((done, total)))

    assert (manifest.read, manifest.kept, manifest.drops) == (45, 40, {"neutral": 3, "too_long": 2})
    assert (manifest.computed_rows, manifest.cached_rows, manifest.records) == (40, 0, "records")
    rows = rows_of(job, manifest)
    assert rows.schema == SCORED
    assert sorted(rows["id"].to_pylist()) == sorted(vote.id for vote in old)
    assert manifest.count("train_chosen") + manifest.count("validation_chosen") == 20
    assert manifest.matching["mode"] == "on"
    assert steps[-1] == (41, 41)
    assert steps == sorted(steps)
    files.verify_directory(job.directory)
    left = {path.name for path in job.directory.iterdir()}
    assert left == {".lock", "manifest.json", "matching.json", "quarantine", *(s.file for s in manifest.shards)}
    assert run(tmp_path / "records", job) == manifest

    bare = without_weights(model, tmp_path / "bare")
    other = job_for(bare, tmp_path, "other", validation=0.5, num_workers=(0, 1))
    again = run(tmp_path / "records", other)
    assert (again.kept, again.computed_rows, again.cached_rows) == (40, 0, 40)
    assert again.count("validation_chosen") != manifest.count("validation_chosen")
    keep = ["id", "input_ids", "reference_logp"]
    assert rows_of(other, again).select(keep).sort_by("id").equals(rows.select(keep).sort_by("id"))

    write_records(tmp_path / "longer", [*old, *[record(f"new {n}", label=n < 3) for n in range(5)]], bits=2)
    longer = run(tmp_path / "longer", job_for(model, tmp_path, "longer", num_workers=(0, 2)))
    assert (longer.kept, longer.computed_rows, longer.cached_rows) == (45, 5, 40)


@dataclass
class Interrupting:
    """As if a person pressed Ctrl-C once the first part was through the model."""

    seen: list[float] = field(default_factory=list)

    def __call__(self, done: float, total: float | None, note: str) -> None:
        self.seen.append(done)
        if note == "rows scored":
            raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_cluster")
def test_an_interrupted_run_does_only_what_is_left(model: Path, tmp_path: Path, record: Make) -> None:
    records = tmp_path / "records"
    write_records(records, [*votes(record, 30), record(TOO_LONG)])
    straight = job_for(model, tmp_path / "straight")
    expected = run(records, straight)

    job = job_for(model, tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        score(records, job, Interrupting())
    finished = {path.name: path.stat().st_mtime_ns for path in job.workplace.reference.glob("part-*.json")}
    assert finished
    (job.workplace.reference / "part-99999-0000.parquet").write_bytes(b"torn")
    (job.directory / ".part-00000-0000.parquet.0123.tmp").write_bytes(b"scrap")
    remove(tmp_path / "interrupted" / "reference")  # what is finished does not need the cache

    steps: list[float] = []
    manifest = score(records, job, lambda done, *_: steps.append(done))
    assert steps[0] > 0 or len(finished) == len(expected.shards)
    assert manifest == expected
    assert manifest.computed_rows == 30
    ours, theirs = (files.read_json(j.directory / files.MANIFEST)["files"] for j in (job, straight))
    assert ours == theirs


def remove(directory: Path) -> None:
    """Tasks that were at work when the run was interrupted may still write there."""
    deadline = time.monotonic() + 60
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.2)
    assert not directory.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_logs_that_cannot_teach_are_refused(model: Path, tmp_path: Path, record: Make) -> None:
    write_records(tmp_path / "ups", [record(f"q{n}") for n in range(3)], bits=0)
    with pytest.raises(DataError, match="3 thumbs-up and 0 thumbs-down.*data.label_map"):
        run(tmp_path / "ups", job_for(model, tmp_path, "ups", validation=0.0))
    write_records(tmp_path / "long", [record(TOO_LONG)], drops={"neutral": 1})
    with pytest.raises(DataError, match="no row of 2 can be used: 1 neutral, 1 too_long"):
        run(tmp_path / "long", job_for(model, tmp_path, "long"))
    write_records(tmp_path / "none", [], drops={"neutral": 4})
    with pytest.raises(DataError, match="no row of 4 can be used: 4 neutral"):
        run(tmp_path / "none", job_for(model, tmp_path, "none"))


@pytest.mark.usefixtures("ray_cluster")
def test_thumbs_up_alone_are_scored_for_a_loss_that_needs_no_more(model: Path, tmp_path: Path, record: Make) -> None:
    write_records(tmp_path / "ups", [record(f"q{n}") for n in range(3)], bits=0)
    manifest = run(tmp_path / "ups", job_for(model, tmp_path, "ups", validation=0.0, ups_suffice=True))
    assert (manifest.count("train_chosen"), manifest.count("train_rejected")) == (3, 0)
    assert manifest.matching["reason"] == "no thumbs-down to match with"
    require_classes(manifest.shards, manifest.drops, ups_suffice=True)
    with pytest.raises(DataError, match="this loss needs both.*objective.loss: sft .of a job: method supervised"):
        require_classes(manifest.shards, manifest.drops, ups_suffice=False)
    downs = [shard.model_copy(update={"train_chosen": 0, "train_rejected": 3}) for shard in manifest.shards]
    with pytest.raises(DataError, match="0 thumbs-up and 3 thumbs-down .* sft trains on thumbs-up alone"):
        require_classes(downs, manifest.drops, ups_suffice=True)


@pytest.mark.usefixtures("ray_cluster")
def test_a_stored_classifier_weighs_another_log(model: Path, tmp_path: Path, record: Make) -> None:
    write_records(tmp_path / "records", votes(record), bits=0)
    job = job_for(model, tmp_path)
    manifest = run(tmp_path / "records", job)
    stored = Weighing("on", "positive", 0.5, 10.0, job.directory / "matching.json")
    reusing = job_for(model, tmp_path, "reusing", weighing=stored)
    again = run(tmp_path / "records", reusing)
    assert rows_of(reusing, again)["weight"].to_pylist() == pytest.approx(rows_of(job, manifest)["weight"].to_pylist())

    off = job_for(model, tmp_path, "off", weighing=Weighing("off", "positive", 0.5, 10.0))
    manifest = run(tmp_path / "records", off)
    assert set(rows_of(off, manifest)["weight"].to_pylist()) == {1.0}
    with pytest.raises(SpecError, match="scoring.classifier: .* it holds no classifier .matching is off"):
        load_classifier(off.directory / "matching.json")


@pytest.mark.usefixtures("ray_cluster")
def test_each_on_ray_keeps_the_order(tmp_path: Path) -> None:
    shards = [tmp_path / str(n) for n in range(3 * SHARDS_PER_TASK + 1)]
    assert list(on_ray(str, shards)) == [str(shard) for shard in shards]
    assert list(on_ray(str, [])) == []
