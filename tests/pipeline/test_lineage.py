"""What `lineage.json` names, and that each name leads to something on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bco_ray
from bco_ray.config import parse_spec
from bco_ray.feedback.sources import SourceFile
from bco_ray.pipeline.card import model_card
from bco_ray.pipeline.lineage import lineage_of
from bco_ray.pipeline.log import ResolvedLog
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import files
from bco_ray.storage.export import FeedbackManifest
from bco_ray.storage.records import RecordsManifest, commit_records
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored

SHARDS = [ShardFacts(file=f"part-{n}.parquet", train_chosen=3, train_rejected=2, validation_chosen=1,
                     validation_rejected=n, train_tokens=50) for n in range(2)]  # fmt: skip
SCORED = ScoredManifest(
    inputs={}, read=20, kept=13, drops={"erased": 2, "too_long": 5}, shards=SHARDS,
    matching={"applied": False, "reason": "too few prompts", "auc": None, "prompts_most_like_other": [{"score": 1}]},
    lengths={"applied": True, "auc_before": 0.7, "edges": [3, 9]},
)  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    """As resolved, with its records and shards written."""
    feedback = ["feedback:2", "/logs/a.jsonl"]
    spec = parse_spec({"name": "bot", "model": {"base": "helper/3"}, "data": {"feedback": feedback}}, where="test")
    sources = (SourceFile("/logs/a.jsonl", 123, 1, "trl"),)
    log = ResolvedLog(spec.data, tmp_path, sources, frozenset(), b"a salt of many bytes")
    model = ("/models/helper/3", "fingerprint")
    job = ResolvedJob(spec, tmp_path, *model, *model, log, bf16=False)
    manifest = FeedbackManifest(number=2, created_at=1.0, watermark=77, segments=[])
    files.write_json(tmp_path / "feedback" / manifest.file, manifest.model_dump())
    commit_records(
        log.directory,
        RecordsManifest(inputs={}, read=20, kept=18, drops={"erased": 2}, answers={"unvoted": 4}, bits=3),
    )
    for shard in SHARDS:
        files.write_bytes(job.scored_directory / shard.file, shard.file.encode())
    commit_scored(job.scored_directory, SCORED)
    return job


def test_a_version_names_all_it_came_from(job: ResolvedJob) -> None:
    lineage = lineage_of(job, SCORED, {"auc": 0.7})
    assert (lineage["run"], lineage["parent"]) == (job.run_directory.name, "helper/3")
    assert (lineage["parent_fingerprint"], lineage["bco_ray"]) == ("fingerprint", bco_ray.__version__)
    assert (lineage["feedback"], lineage["watermarks"]) == (["feedback:2", "/logs/a.jsonl"], {"feedback:2": 77})
    assert lineage["sources"] == [{"path": "/logs/a.jsonl", "bytes": 123, "format": "trl"}]
    assert lineage["records"] == {
        "directory": job.log.directory.name, "read": 20, "kept": 18, "drops": {"erased": 2}, "answers": {"unvoted": 4},
    }  # fmt: skip
    assert lineage["scored"] == job.scored_directory.name
    assert lineage["shards"] == {s.file: files.sha256(job.scored_directory / s.file) for s in SHARDS}
    assert lineage["votes"] == {"read": 20, "kept": 13, "drops": {"erased": 2, "too_long": 5}}
    assert lineage["classes"] == {
        "train_chosen": 6, "train_rejected": 4, "validation_chosen": 2, "validation_rejected": 1,
    }  # fmt: skip
    assert lineage["matching"] == {"applied": False, "reason": "too few prompts", "auc": None}
    assert lineage["lengths"] == {"applied": True, "auc_before": 0.7}
    assert lineage["evaluation"] == {"auc": 0.7}
    assert lineage["project"] is None
    assert lineage_of(job, SCORED, {}, "acme")["project"] == "acme"


def test_it_is_json_and_makes_a_card(job: ResolvedJob) -> None:
    lineage = lineage_of(job, SCORED, {"auc": 0.7})
    assert json.loads(json.dumps(lineage, allow_nan=False)) == lineage
    assert "13 votes" in model_card(job.spec, lineage, SCORED.matching)


def test_another_spec_is_another_digest(job: ResolvedJob) -> None:
    digest = lineage_of(job, SCORED, {})["spec"]
    other = job.spec.model_copy(update={"name": "other"})
    assert files.digest(other.model_dump(mode="json")) != digest == files.digest(job.spec.model_dump(mode="json"))
