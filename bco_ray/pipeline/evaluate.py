"""`bco evaluate`: what a version is worth, next to the base and to what is live, written down beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import bco_ray
from bco_ray.evaluation.judging import Outcome
from bco_ray.evaluation.regression import load_cases
from bco_ray.evaluation.votes import Measured
from bco_ray.pipeline.comparing import (
    Answers,
    answer_prompts,
    answers_row,
    judge_answers,
    judge_of,
    kl_on_policy,
    mean_tokens,
    opponent,
)
from bco_ray.pipeline.contenders import Contender, contenders
from bco_ray.pipeline.evaluation_page import pages_of
from bco_ray.pipeline.log import require_nobody_erased_since
from bco_ray.pipeline.measuring import measure_votes
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage import evaluations as stored
from bco_ray.storage import files
from bco_ray.storage.evaluations import FEWEST_OF_A_CLASS, FEWEST_PROMPTS, FEWEST_VOTERS, Evaluation, Votes
from bco_ray.storage.registry import ModelVersion, Registry
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases


def evaluate_version(
    job: ResolvedJob, scored: ScoredManifest, version: ModelVersion, against: Sequence[str], phases: Phases
) -> Path:
    """Judge a registered version on the held-out votes and prompts of a job; returns where the result is.

    Raises SpecError, ModelError, ServingError (the judge), StorageError.
    """
    settings, before = job.spec.evaluation, len(phases.times)
    cases = load_cases(files.path_of(settings.regression)) if settings.regression else []
    judge = judge_of(job.spec.judge) if job.spec.judge else None
    model, others = contenders(job, version, against)
    measured = measure_votes(job, scored, [model, *others], phases)
    answers, tried = answer_prompts(job, scored, [model, *others], cases, phases)
    outcomes = [judge_answers(job, judge, answers, place, phases) for place in range(1, len(others) + 1)]
    opponents = [
        opponent(job, other, measured, answers, place, outcomes[place - 1], judge)
        for place, other in enumerate(others, start=1)
    ]
    evaluation = Evaluation(
        model=version.reference,
        at=int(time.time()),
        run=version.lineage.get("run"),
        files=stored.files_digest(version.directory),
        scored=job.scored_directory.name,
        beta=job.spec.objective.beta,
        settings=settings.model_dump(mode="json"),
        votes=measured[0].votes if measured[0].votes.rows else None,
        answers=len(answers.prompts),
        answer_tokens=mean_tokens(job, answers.by_contender[0]),
        kl_on_policy=kl_on_policy(job, model, answers, phases),
        opponents=opponents,
        regression=tried or None,
        gate=job.spec.gate.model_dump(mode="json", exclude_none=True) if job.spec.gate else None,
        leaks=model.leaks,
        notes=notes_on([model, *others], measured[0]),
        seconds=_seconds(phases, before),
        bco_ray=bco_ray.__version__,
    )
    require_nobody_erased_since(job.log)
    return _written(job, version, evaluation, answers, [model, *others], outcomes)


def notes_on(who: Sequence[Contender], measured: Measured) -> list[str]:
    """What to know before one goes by the numbers of these models, whose votes are `measured` by the first."""
    notes = [contender.leaks for contender in who if contender.leaks]
    notes += [
        f"{other.name} is the reference: its rewards are all 0 by definition, so none are compared with it."
        for other in who[1:]
        if other.is_reference
    ]
    votes = measured.votes
    if not votes.rows:
        notes.append("No votes are held out (data.validation is 0, or the log is too small).")
    elif few := _few(votes):
        notes.append(few)
    if 0 < measured.users < FEWEST_VOTERS:
        notes.append(f"The held-out votes are of {measured.users} people: no interval says what others would vote.")
    if votes.rows and votes.delta_from == "votes":
        notes.append(
            "delta is taken from the held-out votes themselves (the training's is not known or was measured by another "
            "reference or beta): accuracy and calibration look slightly better than they are."
        )
    return notes


def _few(votes: Votes) -> str | None:
    up, down = votes.by_class["up"].prompts, votes.by_class["down"].prompts
    if votes.prompts >= FEWEST_PROMPTS and min(up, down) >= FEWEST_OF_A_CLASS:
        return None
    return (
        f"Only {votes.prompts} prompts are held out, {up} with a thumbs-up and {down} with a thumbs-down: there are no "
        f"intervals below {FEWEST_PROMPTS}, and none of what tells the two apart below {FEWEST_OF_A_CLASS} of each."
    )


def _seconds(phases: Phases, before: int) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for time_ in phases.times[before:]:
        seconds[time_.name] = round(seconds.get(time_.name, 0.0) + time_.seconds, 2)
    return seconds


def _written(
    job: ResolvedJob,
    version: ModelVersion,
    evaluation: Evaluation,
    answers: Answers,
    who: Sequence[Contender],
    outcomes: Sequence[Sequence[Outcome | None] | None],
) -> Path:
    """Beside the version, and a copy of the numbers in the directory of its run."""
    rows = [answers_row(answers, number, who, outcomes) for number in range(len(answers.prompts))]
    card = (version.directory / stored.CARD).read_text() if (version.directory / stored.CARD).is_file() else ""
    more = {
        stored.ANSWERS: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        **pages_of(evaluation, rows, card),
    }
    place = Registry(job.storage).evaluations(version.name).add(version.version, evaluation, more)
    run = job.storage / "runs" / str(evaluation.run)
    if evaluation.run and run.is_dir():
        files.write_json(run / "evaluations" / f"{place.name}.json", evaluation.model_dump(mode="json"))
    return place
