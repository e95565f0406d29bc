"""Answers of all contenders to the same held-out prompts, and who says which are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bco_ray.config import JudgeSpec
from bco_ray.config.evaluation import JUDGE_PROMPT
from bco_ray.errors import ServingError
from bco_ray.evaluation.answering import Answer, Asked, Sampling, answers_to
from bco_ray.evaluation.bootstrap import Resamples, draw
from bco_ray.evaluation.divergence import log_ratios
from bco_ray.evaluation.endpoint import EndpointJudge
from bco_ray.evaluation.judging import Judge, Outcome, Pair, judge_pairs, rule, win_rate
from bco_ray.evaluation.prompts import HeldOutPrompt, as_text, held_out_prompts
from bco_ray.evaluation.regression import Case
from bco_ray.evaluation.votes import Measured
from bco_ray.evaluation.weighted import mean_of
from bco_ray.pipeline.contenders import Contender
from bco_ray.pipeline.measuring import machine_of
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.evaluations import FEWEST_PROMPTS, Estimate, Opponent, RegressionCase
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases


@dataclass(frozen=True)
class Answers:
    """To the same prompts: by contender, the model first; None where one had no room. `sampled`: the model's own at
    temperature 1, as its probabilities are.
    """

    prompts: list[HeldOutPrompt]
    by_contender: list[list[Answer | None]]
    sampled: list[Answer | None]


def judge_of(spec: JudgeSpec) -> Judge:
    """Raises SpecError if its key is not there."""
    if spec.rule is not None:
        return rule(spec.rule, spec.pattern)
    return EndpointJudge(
        spec.base_url or "",
        spec.model or "",
        api_key_env=spec.api_key_env,
        prompt=spec.prompt or JUDGE_PROMPT,
        parameters=spec.parameters,
        timeout_seconds=spec.timeout_seconds,
    )


def answer_prompts(
    job: ResolvedJob, scored: ScoredManifest, who: Sequence[Contender], cases: Sequence[Case], phases: Phases
) -> tuple[Answers, list[RegressionCase]]:
    """Held-out prompts answered by each contender, and must-pass prompts by the first, at temperature 0."""
    spec = job.spec.evaluation
    records = job.storage / "records" / scored.records
    prompts = held_out_prompts(job.scored_directory, scored, records, count=spec.samples, seed=spec.seed)
    sampling = Sampling(spec.max_new_tokens, spec.temperature, spec.seed)
    asked_for = [prompt.messages for prompt in prompts]
    must = [[message.model_dump(exclude_none=True) for message in case.prompt] for case in cases]
    asked = [
        Asked(who[0].directory, must, replace(sampling, temperature=0.0)),
        Asked(who[0].directory, asked_for if spec.temperature != 1 else [], replace(sampling, temperature=1.0)),
        *(Asked(contender.directory, asked_for, sampling) for contender in who),
    ]
    with phases.phase("answers") as advance:
        tried, sampled, *found = answers_to(asked, machine=machine_of(job), progress=advance)
    return Answers(prompts, found, sampled or found[0]), [
        _tried(case, answer) for case, answer in zip(cases, tried, strict=True)
    ]


def _tried(case: Case, answer: Answer | None) -> RegressionCase:
    if answer is None:
        return RegressionCase(name=case.name, problems=["the prompt leaves no room for an answer"], answer="")
    return RegressionCase(name=case.name, problems=case.problems(answer.text), answer=answer.text)


def judge_answers(
    job: ResolvedJob, judge: Judge | None, answers: Answers, place: int, phases: Phases
) -> list[Outcome | None] | None:
    """How the model did against a contender, prompt by prompt; None where one of them had no room.

    Raises ServingError if the judge has nothing to say of any pair.
    """
    if judge is None or not answers.prompts:
        return None
    asked = zip(answers.prompts, answers.by_contender[0], answers.by_contender[place], strict=True)
    pairs = {
        number: Pair(as_text(prompt.messages), ours.text, theirs.text)
        for number, (prompt, ours, theirs) in enumerate(asked)
        if ours and theirs
    }
    concurrency = job.spec.judge.concurrency if job.spec.judge else 1
    with phases.phase("judge") as advance:
        outcomes = judge_pairs(judge, list(pairs.values()), concurrency=concurrency, progress=advance)
    if outcomes and set(outcomes) == {"undecided"}:
        raise ServingError(
            f"judge: {judge.name} gave no verdict on any of {len(outcomes)} pairs: is it reachable, and does its "
            "answer end with [[A]], [[B]] or [[C]]?"
        )
    known = dict(zip(pairs, outcomes, strict=True))
    return [known.get(number) for number in range(len(answers.prompts))]


def opponent(
    job: ResolvedJob,
    other: Contender,
    measured: Sequence[Measured],
    answers: Answers,
    place: int,
    outcomes: Sequence[Outcome | None] | None,
    judge: Judge | None,
) -> Opponent:
    confidence = job.spec.evaluation.confidence
    decided = None if outcomes is None else [outcome for outcome in outcomes if outcome is not None]
    return Opponent(
        model=other.name,
        role=other.role or "named",
        is_reference=other.is_reference,
        votes=measured[place].votes if measured[place].votes.rows else None,
        difference={} if other.is_reference else measured[0].less(measured[place], confidence),
        answer_tokens=mean_tokens(job, answers.by_contender[place]),
        win_rate=win_rate(decided, judge.name, confidence) if decided is not None and judge else None,
    )


def mean_tokens(job: ResolvedJob, answers: Sequence[Answer | None]) -> Estimate:
    """Mean length of the answers."""
    return _mean(job, [answer.tokens for answer in answers if answer])


def kl_on_policy(job: ResolvedJob, model: Contender, answers: Answers, phases: Phases) -> Estimate:
    """KL(model || reference) in nats per answer, as far as answers go; unknown where none were sampled."""
    said = [answer for answer in answers.sampled if answer]
    with phases.phase("answers") as advance:
        ratios_N = log_ratios(said, model.directory, job.reference_directory, machine=machine_of(job), progress=advance)
    return _mean(job, ratios_N)


def _mean(job: ResolvedJob, values_N: ArrayLike) -> Estimate:
    """Of one value per prompt."""
    spec, values = job.spec.evaluation, np.asarray(values_N, np.float64)
    resamples = Resamples(np.arange(len(values)), count=spec.resamples, seed=spec.seed)
    drawn = draw({"mean": mean_of(values)}, resamples, len(values))["mean"]
    return (drawn if len(values) >= FEWEST_PROMPTS else drawn.without_draws()).estimate(spec.confidence)


def answers_row(
    answers: Answers, number: int, who: Sequence[Contender], outcomes: Sequence[Sequence[Outcome | None] | None]
) -> dict[str, Any]:
    """A prompt, everybody's answer, and what the judge said of the model's; whose prompt it was."""
    prompt = answers.prompts[number]
    given = [found[number] for found in answers.by_contender]
    return {
        "prompt": prompt.messages,
        "answers": {c.name: answer.text if answer else None for c, answer in zip(who, given, strict=True)},
        "outcomes": {c.name: o[number] for c, o in zip(who[1:], outcomes, strict=True) if o is not None},
        "votes": prompt.votes,
        "users": prompt.users,
    }
