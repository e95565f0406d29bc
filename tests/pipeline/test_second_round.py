"""A second round on `feedback:` as a run: on the new votes and some older ones, against the first reference."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bco_ray.config import JobSpec, parse_spec
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.run import run_job
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import Phases
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]


def vote(storage: Path, model: str, names: list[str], *, answered: bool = True) -> None:
    """A thumb on an answer of `model` to a prompt of its own for each name; every other one is up."""
    log = FeedbackLog.open(storage)
    for number, name in enumerate(names):
        if answered:
            prompt = [{"role": "user", "content": f"Question {name}?"}]
            log.add_completion(
                Completion(name, 1.0, model, "fp", prompt, [1], [Choice(f"Answer {name}.", [2], "stop")], {})
            )
        log.add_vote(Vote(response_id=name, label=number % 2 == 0, user=f"user of {name}"))


def spec(storage: Path, base: str) -> JobSpec:
    return parse_spec(
        {
            "name": "bot",
            "model": {"base": base, "reference": "kept"},
            "data": {"feedback": "feedback:", "validation": 0.0},
            "rounds": {"older": 0.25, "off_policy_weight": 0.5},
            "training": {"learning_rate": 1e-3, "rows_per_step": 16, "max_length": 128, "num_workers": 1},
            "output": {"storage": str(storage)},
        },
        where="test",
    )


def test_a_second_round_trains_on_the_right_votes_against_the_first_reference(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.register("bot", write_tiny_model(tmp_path / "base"), {})
    vote(tmp_path, "bot/1", [f"old{n}" for n in range(60)])
    first = resolve(spec(tmp_path, "bot/1"))
    assert first.spec.data.feedback == ["feedback:1"]
    lineage = {"run": "r1", "feedback": ["feedback:1"], "reference": "bot/1",
               "reference_fingerprint": first.reference_fingerprint}  # fmt: skip
    registry.register("bot", write_tiny_model(tmp_path / "trained", seed=1), lineage)

    vote(tmp_path, "bot/2", [f"new{n}" for n in range(27)])
    vote(tmp_path, "bot/1", ["old1", "old0", "old3"], answered=False)  # they changed their minds
    outcome = run_job(resolve(spec(tmp_path, "bot/2")), Phases(quiet=True))
    job, scored = outcome.job, outcome.scored
    assert (job.spec.data.feedback, job.spec.model.reference) == (["feedback:1..2"], "bot/1")
    assert scored.read == 60 + 30
    assert scored.drops == {"not_drawn": 47, "superseded": 3}
    rows = [row for path in job.scored_directory.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    older = [row for row in rows if row["file"] in job.log.older]
    assert (len(rows), len(older), scored.kept) == (40, 10, 40)
    assert scored.mixture["older_votes"] == 10
    assert scored.mixture["off_policy"]["rows"] == pytest.approx(13 / 40)
    assert 0.15 < scored.mixture["off_policy"]["weight"] < 0.23
    ups = [row["weight"] for row in rows if row["label"]]
    assert sum(ups) / len(ups) == pytest.approx(1, abs=1e-5)
    assert min(ups) == pytest.approx(max(ups) / 2, rel=1e-5)

    metrics = MetricsLog(job.run_directory / "metrics.jsonl").read()
    assert metrics[0]["delta"] != 0.0  # looked up before the first step: the policy is not its reference
    lineage = outcome.version.lineage
    assert (outcome.version.reference, lineage["parent"], lineage["reference"]) == ("bot/3", "bot/2", "bot/1")
    assert lineage["mixture"] == scored.mixture
    assert "32.5% off-policy" in (outcome.version.directory / "README.md").read_text()
