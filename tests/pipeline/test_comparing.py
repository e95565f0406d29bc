"""What each contender is asked, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bco_ray.config import parse_spec
from bco_ray.evaluation.answering import Answer, Asked
from bco_ray.evaluation.prompts import HeldOutPrompt
from bco_ray.pipeline import comparing
from bco_ray.pipeline.comparing import answer_prompts, kl_on_policy, mean_tokens
from bco_ray.pipeline.contenders import Contender
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases
from bco_ray.testing.tiny import write_tiny_model

MODEL = Contender("bot/1", None, "/models/bot", None, is_reference=False, leaks=None)
BASE = Contender("base", "base", "/models/base", None, is_reference=True, leaks=None)
SCORED = ScoredManifest(inputs={"records": "r"}, read=0, kept=0, drops={}, matching={}, shards=[])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What the stage is asked; it answers with the temperature."""
    seen: list[Asked] = []

    def answers_to(asked: Sequence[Asked], **_: Any) -> list[list[Answer | None]]:
        seen.extend(asked)
        return [[Answer(str(one.sampling.temperature), 1) for _ in one.prompts] for one in asked]

    prompts = [HeldOutPrompt([{"role": "user", "content": f"{n}?"}], [], []) for n in range(40)]
    monkeypatch.setattr(comparing, "answers_to", answers_to)
    monkeypatch.setattr(comparing, "held_out_prompts", lambda *_, count, **__: prompts[:count])
    return seen


def job(root: Path, **evaluation: Any) -> ResolvedJob:
    if not (root / "base").exists():
        write_tiny_model(root / "base")
        (root / "votes.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a", "label": True}) + "\n")
    values = {"name": "bot", "model": {"base": str(root / "base")}, "output": {"storage": str(root / "runs")},
              "data": {"feedback": str(root / "votes.jsonl")}, "evaluation": evaluation}  # fmt: skip
    return resolve(parse_spec(values, where="test"))


def test_how_far_a_model_has_gone_is_asked_at_temperature_1(asked: list[Asked], tmp_path: Path) -> None:
    answers, _ = answer_prompts(job(tmp_path, temperature=0.7), SCORED, [MODEL, BASE], [], Phases(quiet=True))
    assert {answer.text for answer in answers.sampled if answer} == {"1.0"}
    assert [{a.text for a in given if a} for given in answers.by_contender] == [{"0.7"}, {"0.7"}]
    assert [one.directory for one in asked if one.prompts and one.sampling.temperature == 1] == ["/models/bot"]


def test_answers_at_temperature_1_do_for_both(asked: list[Asked], tmp_path: Path) -> None:
    answers, _ = answer_prompts(job(tmp_path, temperature=1.0), SCORED, [MODEL, BASE], [], Phases(quiet=True))
    assert answers.sampled == answers.by_contender[0]
    assert [one.directory for one in asked if one.prompts] == ["/models/bot", "/models/base"]


@pytest.mark.usefixtures("asked")
def test_what_nobody_answered_is_unknown_and_few_answers_have_no_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = job(tmp_path, samples=0)
    answers, _ = answer_prompts(none, SCORED, [MODEL, BASE], [], Phases(quiet=True))
    assert kl_on_policy(none, MODEL, answers, Phases(quiet=True)).value is None
    monkeypatch.setattr(comparing, "log_ratios", lambda said, *_, **__: [float(n) for n in range(len(said))])
    for samples, known in ((29, False), (30, True)):
        some = job(tmp_path, samples=samples)
        answers, _ = answer_prompts(some, SCORED, [MODEL, BASE], [], Phases(quiet=True))
        for found in (kl_on_policy(some, MODEL, answers, Phases(quiet=True)), mean_tokens(some, answers.sampled)):
            assert found.value is not None
            assert (found.low is not None) == known
