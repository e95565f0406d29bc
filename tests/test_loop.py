"""The whole loop on a tiny model: log -> score -> train -> register -> serve -> thumb -> the next round's records."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest

from bco_ray.config import DataSpec, JobSpec, load_spec, parse_spec
from bco_ray.errors import DataError
from bco_ray.pipeline.data import check_log, report_log
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.run import RunOutcome, run_job, score_job
from bco_ray.pipeline.served import serve_args
from bco_ray.serving.server import start_server
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import Phases
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BROKEN = ['{"prompt": "cut off', '{"prompt": "q", "completion": "", "label": true}',
          '{"prompt": "q", "completion": true, "label": true}', '{"prompt": "q", "completion": "a", "label": "maybe"}',
          json.dumps({"prompt": "long " * 400, "completion": "a", "label": False})]  # fmt: skip


def write_log(path: Path, *, rows: int = 160) -> int:
    """Votes on made answers with a few broken rows between them; returns the number of lines."""
    random_ = random.Random(0)
    lines = [
        json.dumps({"prompt": f"Question {n % 40}?", "completion": random_.choice(["Yes, sure.", "No way!"]) + f" {n}",
                    "label": random_.random() < 0.4, "source": "test"})
        for n in range(rows)
    ]  # fmt: skip
    lines[10:10] = BROKEN
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    root = tmp_path_factory.mktemp("loop")
    write_tiny_model(root / "base")
    write_log(root / "votes.jsonl")
    return root


def spec(storage: Path, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": str(storage / "base")},
        "data": {"feedback": str(storage / "votes.jsonl"), "validation": 0.2},
        "training": {"learning_rate": 1e-3, "rows_per_step": 32, "max_length": 128, "num_workers": 2,
                     "num_train_epochs": 2, "checkpoint": {"every_steps": 3}},
        "output": {"storage": str(storage)},
    }  # fmt: skip
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return parse_spec(values, where="test")


@pytest.fixture(scope="module")
def round_1(storage: Path) -> RunOutcome:
    return run_job(resolve(spec(storage)), Phases(quiet=True))


@pytest.fixture(scope="module")
def client(storage: Path, round_1: RunOutcome, server_port: int) -> Iterator[openai.OpenAI]:
    server = start_server(serve_args(round_1.version.reference, storage), port=server_port)
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
    server.stop()


def scored_rows(job: ResolvedJob) -> list[dict[str, Any]]:
    return [
        row for path in sorted(job.scored_directory.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_every_row_is_accounted_for(round_1: RunOutcome) -> None:
    scored = round_1.scored
    assert scored.read == 165
    assert scored.drops == {"empty_completion": 1, "invalid_completion": 1, "invalid_json": 1, "too_long": 1,
                            "unknown_label": 1}  # fmt: skip
    assert scored.kept == 160 == len(scored_rows(round_1.job))
    assert not list(round_1.job.scored_directory.glob("reference*"))


def test_no_prompt_is_on_both_sides(round_1: RunOutcome) -> None:
    rows = scored_rows(round_1.job)
    sides = {split: {r["prompt_hash"] for r in rows if r["split"] == split} for split in ("train", "validation")}
    assert sides["train"]
    assert sides["validation"]
    assert not sides["train"] & sides["validation"]


def test_the_run_left_what_the_contract_says(storage: Path, round_1: RunOutcome) -> None:
    run = round_1.job.run_directory
    for name in ("spec.resolved.yaml", "metrics.jsonl", "curves.png", "evaluation.json", "model/config.json"):
        assert (run / name).is_file(), name
    metrics = MetricsLog(run / "metrics.jsonl").read()
    assert [m["step"] for m in metrics] == list(range(metrics[0]["total_steps"]))
    assert metrics[0]["rewards/chosen"] == pytest.approx(0, abs=1e-4)  # policy = reference at step 0
    assert metrics[0]["delta"] == 0.0
    assert metrics[-1]["delta"] != 0.0
    version = round_1.version
    assert version.reference == "tiny/1"
    assert version.lineage["votes"]["kept"] == 160
    assert "BCO" in (version.directory / "README.md").read_text()
    assert "eval_auc" in round_1.evaluation


def test_running_again_does_nothing_and_the_resolved_spec_is_the_same_run(storage: Path, round_1: RunOutcome) -> None:
    before = {p: p.stat().st_mtime_ns for p in storage.rglob("*.safetensors")}
    resolved = load_spec(round_1.job.run_directory / "spec.resolved.yaml")
    again = run_job(resolve(resolved), Phases(quiet=True))
    assert again.version.reference == "tiny/1"
    assert again.job.run_directory == round_1.job.run_directory
    assert before == {p: p.stat().st_mtime_ns for p in storage.rglob("*.safetensors")}


def test_lora_trains_only_an_adapter(storage: Path) -> None:
    adapter = {"type": "lora", "r": 4, "alpha": 8}
    outcome = run_job(
        resolve(spec(storage, name="lora", model={"adapter": adapter}, training={"num_train_epochs": 1})),
        Phases(quiet=True),
    )
    files = {p.name for p in outcome.version.directory.iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files


def test_a_log_of_one_class_says_so(storage: Path) -> None:
    only_up = storage / "only_up.jsonl"
    only_up.write_text(
        "".join(json.dumps({"prompt": f"q{n}", "completion": "a", "label": 1}) + "\n" for n in range(30))
    )
    with pytest.raises(DataError, match=r"All 30 votes are thumbs-up, and training needs both.*objective.loss: sft"):
        score_job(resolve(spec(storage, data={"feedback": str(only_up)})), Phases(quiet=True))


@pytest.fixture(scope="module")
def demonstrated(storage: Path) -> tuple[ResolvedJob, RunOutcome]:
    """sft on conversations alone: 60 of them, ten with two answers, and one that nothing can be learned from."""
    rows = []
    for n in range(60):
        turns = [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Yes, sure. {n}"}]
        more = [{"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Yes."}]
        rows.append({"messages": turns + (more if n < 10 else [])})
    rows.append({"messages": rows[0]["messages"][:1]})
    log = storage / "conversations.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = resolve(spec(storage, name="taught", data={"feedback": str(log)}, objective={"loss": "sft"}))
    return job, run_job(job, Phases(quiet=True))


def test_conversations_without_a_label_are_enough_for_sft(demonstrated: tuple[ResolvedJob, RunOutcome]) -> None:
    job, outcome = demonstrated
    assert (outcome.scored.read, outcome.scored.kept, outcome.scored.drops) == (71, 70, {"no_answer": 1})
    assert (outcome.scored.count("train_rejected"), outcome.scored.count("validation_rejected")) == (0, 0)
    assert outcome.scored.matching["applied"] is False
    assert outcome.scored.matching["reason"] == "no thumbs-down to match with"
    settled = [row for path in job.log.directory.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {(row["label"], row["label_raw"]) for row in settled} == {(True, "demonstration")}
    metrics = MetricsLog(job.run_directory / "metrics.jsonl").read()
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    found = outcome.evaluation
    assert found["rows"] == outcome.scored.count("validation_chosen") > 0
    assert (found["eval_auc"], found["eval_rewards/rejected"], found["eval_logps/rejected"]) == (None, None, None)
    assert found["eval_logps/chosen"] < 0 < found["eval_sft_loss"]
    assert (job.run_directory / "curves.png").is_file()
    card = (outcome.version.directory / "README.md").read_text()
    assert "with SFT from" in card
    assert "not applied (no thumbs-down to match with)" in card
    assert "| eval_auc | - |" in card
    assert outcome.version.lineage["classes"]["train_rejected"] == 0


def test_what_is_said_of_them(storage: Path, demonstrated: tuple[ResolvedJob, RunOutcome]) -> None:
    job, _ = demonstrated
    report, paths = report_log(job, Phases(quiet=True))
    assert report.check.verdict.usable
    assert report.class_weights == {}
    assert "no thumbs-down to match with" in paths["html"].read_text()
    log = DataSpec(feedback=[str(storage / "conversations.jsonl")])
    with pytest.raises(DataError, match="its conversations have no label"):
        check_log(log, storage, Phases(quiet=True))
    assert check_log(log, storage, Phases(quiet=True), ups_suffice=True).verdict.usable
    named = log.model_copy(update={"format": "openai-chat"})
    assert not check_log(named, storage, Phases(quiet=True)).verdict.usable


def test_a_wrong_label_map_says_so(storage: Path) -> None:
    words = storage / "words.jsonl"
    words.write_text((storage / "votes.jsonl").read_text().replace("true", '"good"').replace("false", '"bad"'))
    job = resolve(spec(storage, data={"feedback": str(words)}))
    with pytest.raises(DataError, match=r"of 165 votes .* nobody knows \(label '\w+' is not in data.label_map"):
        score_job(job, Phases(quiet=True))


def test_a_posted_thumb_is_in_the_next_rounds_records(
    storage: Path, round_1: RunOutcome, client: openai.OpenAI
) -> None:
    assert [m.id for m in client.models.list()] == ["tiny/1"]
    ids: dict[str, bool] = {}
    for n in range(24):
        reply = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"Fresh question {n}?"}], max_tokens=6, seed=n
        )
        assert reply.model == "tiny/1"
        label = n % 3 == 0
        vote: Any = client.post("/feedback", body={"response_id": reply.id, "label": not label}, cast_to=object)
        vote = client.post("/feedback", body={"response_id": reply.id, "label": label}, cast_to=object)  # changed mind
        ids[vote["id"]] = label
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model="tiny/1", messages=[{"role": "user", "content": "Stream?"}], max_tokens=6, stream=True
        )
    )
    assert isinstance(text, str)

    job = resolve(spec(storage, model={"base": "tiny/1"}, data={"feedback": "feedback", "validation": 0.0}))
    outcome = run_job(job, Phases(quiet=True))
    assert job.spec.data.feedback == ["feedback:1"]
    kept = {row["id"]: row["label"] for row in scored_rows(job)}
    dropped = outcome.scored.drops
    assert outcome.scored.read == 48
    assert dropped.pop("superseded") == 24
    assert set(dropped) <= {"empty_completion"}  # a random model may say nothing
    assert kept.items() <= ids.items()
    assert len(kept) == 24 - sum(dropped.values())
    assert outcome.version.reference == "tiny/2"
    assert outcome.version.lineage["parent"] == "tiny/1"
    assert outcome.version.lineage["watermarks"] == {"feedback:1": 48}
    assert Registry(storage).versions("tiny") == [1, 2]
