"""A version is judged by its held-out votes, its answers and must-pass prompts; the gate goes by that."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config import JobSpec, parse_spec
from bco_ray.errors import GateError
from bco_ray.pipeline.erase import erase_votes
from bco_ray.pipeline.evaluate import evaluate_version
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.run import RunOutcome, run_job, score_job
from bco_ray.storage.evaluations import Evaluation, files_digest
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import Phases
from bco_ray.testing.tiny import write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NINE_PEOPLE = "The held-out votes are of 9 people: no interval says what others would vote."
GATE = {"auc": {"min": 0.6}, "win_rate": {"min": 0.05}, "regression": "all"}


def write_log(path: Path, *, rows: int = 400) -> None:
    """People like `Yes, sure.`; one in ten votes is wrong. Votes on a prompt come from two sources."""
    random_ = random.Random(0)
    lines = []
    for n in range(rows):
        kind = random_.random() < 0.5
        answer = "Yes, sure." if kind else "No way!"
        lines.append(
            {"prompt": f"Question {n % 80}?", "completion": f"{answer} {n}", "label": kind != (random_.random() < 0.1),
             "source": ("web", "app")[n % 2], "user": f"user-{n % 9}", "id": f"vote-{n}"}
        )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def spec(storage: Path, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "name": "helper",
        "model": {"base": str(storage / "base")},
        "data": {"feedback": str(storage / "votes.jsonl"), "validation": 0.4},
        "scoring": {"num_workers": 1},
        "training": {"learning_rate": 1e-3, "rows_per_step": 64, "max_length": 128, "num_workers": 1,
                     "num_train_epochs": 2, "deepspeed": {"zero_stage": 0}, "max_tokens_per_micro_batch": 2048},
        "evaluation": {"samples": 20, "max_new_tokens": 12, "resamples": 200,
                       "regression": str(storage / "must.jsonl")},
        "judge": {"rule": "shorter"},
        "gate": GATE,
        "output": {"storage": str(storage)},
    }  # fmt: skip
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return parse_spec(values, where="test")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    write_tiny_model(root / "base")
    write_log(root / "votes.jsonl")
    must = [{"name": "never", "prompt": "Hello?", "must_not_contain": "never ever"},
            {"name": "always", "prompt": "Hello?", "must_match": "(?s).*"}]  # fmt: skip
    (root / "must.jsonl").write_text("".join(json.dumps(case) + "\n" for case in must))
    return root


@pytest.fixture(scope="module")
def trained(storage: Path) -> RunOutcome:
    return run_job(resolve(spec(storage)), Phases(quiet=True))


@pytest.fixture(scope="module")
def first(storage: Path, trained: RunOutcome) -> Evaluation:
    """The one that the run made for its gate."""
    found = Registry(storage).evaluations("helper").latest(1)
    assert found is not None
    return found


def test_a_run_with_a_gate_evaluates_what_it_registered(storage: Path, trained: RunOutcome, first: Evaluation) -> None:
    assert (first.model, first.run) == ("helper/1", trained.job.run_directory.name)
    assert first.gate == {"auc": {"min": 0.6, "bound": "cautious"}, "win_rate": {"min": 0.05, "bound": "cautious"},
                          "regression": "all"}  # fmt: skip
    place = Registry(storage).evaluations("helper").place(1, 1)
    assert {p.name for p in place.iterdir()} == {"evaluation.json", "answers.jsonl", "report.html", "README.md"}
    copy = json.loads((trained.job.run_directory / "evaluations" / "1.json").read_text())
    assert copy == first.model_dump(mode="json")
    again = run_job(resolve(spec(storage)), Phases(quiet=True))
    assert Registry(storage).evaluations("helper").numbers(again.version.version) == [1]


def test_the_numbers_are_the_runs_with_intervals(trained: RunOutcome, first: Evaluation) -> None:
    assert first.votes is not None
    auc = first.votes.metrics["auc"]
    assert auc.value == pytest.approx(trained.evaluation["eval_auc"], abs=1e-6)
    assert auc.low is not None
    assert 0.6 < auc.low < auc.value  # type: ignore[operator]
    assert first.votes.metrics["accuracy"].value == pytest.approx(trained.evaluation["eval_rewards/accuracies"])
    assert first.votes.rows == trained.evaluation["rows"]
    assert first.votes.delta_from == "run"
    assert set(first.votes.by_source) == {"web", "app"}


def test_the_base_is_what_it_is_compared_with(storage: Path, first: Evaluation) -> None:
    (base,) = first.opponents
    assert (base.model, base.role) == (str(storage / "base"), "base")
    assert base.votes is not None
    assert base.votes.metrics["auc"].value == 0.5  # the reference's own rewards are all 0
    assert (base.is_reference, base.difference) == (True, {})
    assert first.notes == [
        f"{base.model} is the reference: its rewards are all 0 by definition, so none are compared with it.",
        NINE_PEOPLE,
    ]
    assert base.win_rate is not None
    assert base.win_rate.wins + base.win_rate.ties + base.win_rate.losses == first.answers == 20
    assert base.win_rate.judge == "rule: shorter"
    assert first.regression is not None
    assert [case.passed for case in first.regression] == [True, True]


def test_it_says_of_which_files_it_is_and_how_far_they_have_gone(storage: Path, first: Evaluation) -> None:
    assert first.files == files_digest(Registry(storage).get("helper", 1).directory)
    assert first.kl_on_policy.value is not None
    assert first.kl_on_policy.value > 0  # two epochs at a high learning rate
    assert (first.answer_tokens.low, first.kl_on_policy.low) == (None, None)  # of 20 answers
    assert first.leaks is None


def test_answers_are_of_held_out_prompts_and_the_page_shows_them(storage: Path, first: Evaluation) -> None:
    place = Registry(storage).evaluations("helper").place(1, 1)
    rows = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    assert len({row["prompt"][0]["content"] for row in rows}) == 20
    assert set(rows[0]["answers"]) == {"helper/1", str(storage / "base")}
    assert rows[0]["votes"]
    page = (place / "report.html").read_text()
    assert "passes its gate" in page
    assert rows[0]["prompt"][0]["content"] in page
    assert page.count("data:image/png") >= 4
    card = (place / "README.md").read_text()
    assert "Trained by bco-ray with BCO" in card
    assert "| AUC of the implicit reward | 0." in card


def test_the_live_version_is_asked_next_and_one_that_is_no_better_is_refused(storage: Path, first: Evaluation) -> None:
    registry = Registry(storage)
    registry.promote("helper", 1)
    changed = spec(storage, training={"seed": 1}, gate={"difference": {"auc": {"min": 0.2}}, "win_rate": None})
    outcome = run_job(resolve(changed), Phases(quiet=True))
    assert outcome.version.reference == "helper/2"
    found = registry.evaluations("helper").latest(2)
    assert found is not None
    assert [(other.model, other.role) for other in found.opponents] == [
        (str(storage / "base"), "base"), ("helper/1", "live"),
    ]  # fmt: skip
    with pytest.raises(GateError, match=r"difference.auc to helper/1: lower bound") as caught:
        registry.promote("helper", 2)
    assert len(caught.value.reasons) == 1
    registry.promote("helper", 2, "candidate")

    job = resolve(
        spec(
            storage,
            gate={"auc": {"min": 0.5}, "win_rate": None, "regression": None},
            judge=None,
            evaluation={"samples": 0, "regression": None},
        )
    )
    place = evaluate_version(job, score_job(job, Phases(quiet=True)), outcome.version, ["helper/1"], Phases(quiet=True))
    again = registry.evaluations("helper").get(2, int(place.name))
    assert [(other.model, other.win_rate) for other in again.opponents] == [("helper/1", None)]
    assert (again.notes, again.kl_on_policy.value) == ([NINE_PEOPLE], None)
    assert again.opponents[0].difference["auc"].low is not None
    assert registry.gates("helper").refusals(2) == []  # another policy, and the last evaluation counts


def test_an_erased_voters_prompts_are_forgotten_and_the_numbers_stay(storage: Path, first: Evaluation) -> None:
    place = Registry(storage).evaluations("helper").place(1, 1)
    user = json.loads((place / "answers.jsonl").read_text().splitlines()[0])["votes"][0]
    result = erase_votes(storage, users=[], ids=[user], phases=Phases(quiet=True))
    assert result["evaluations"] >= 1
    assert {p.name for p in place.iterdir()} == {"evaluation.json", "README.md"}
    assert Registry(storage).evaluations("helper").get(1, 1) == first
