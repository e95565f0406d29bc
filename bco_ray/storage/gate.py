"""May `prod` point at a version? A pure function of its policy, its last evaluation, and what is live now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bco_ray.config.gate import GateSpec, MetricThresholds, Threshold
from bco_ray.errors import StorageError
from bco_ray.storage.evaluations import (
    FEWEST_DECIDED,
    FEWEST_OF_A_CLASS,
    FEWEST_PROMPTS,
    UNKNOWN,
    Estimate,
    Evaluation,
    Votes,
    WinRate,
)


def policy_of(registered: Mapping[str, Any] | None, evaluation: Evaluation | None) -> GateSpec | None:
    """The last evaluation's, if the spec it was made with has one, else the one the version was registered with. One
    without thresholds takes none away.

    Raises StorageError for one that this version of bco-ray does not understand.
    """
    newer = None if evaluation is None or evaluation.gate is None else _read(evaluation.gate)
    if newer is not None and newer.evaluates:
        return newer
    known = None if registered is None else _read(registered)
    if newer is None or known is None or not known.evaluates:
        return newer or known
    return known.model_copy(update={"canary": newer.canary or known.canary})


def _read(policy: Mapping[str, Any]) -> GateSpec:
    try:
        return GateSpec.model_validate(dict(policy))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise StorageError(
            f"its gate cannot be read ({field}: {problem['msg']}); evaluate the version again."
        ) from None


def refusals(policy: GateSpec, evaluation: Evaluation | None, live: str | None) -> list[str]:
    """Every reason against it, none if it passes. `live`: the version that would be replaced, which it must have been
    compared with where the policy compares at all.
    """
    if not policy.evaluates:
        return []
    if evaluation is None:
        return ["it was never evaluated"]
    return [
        *_leaks(policy, evaluation),
        *_metrics(policy, evaluation),
        *_comparisons(policy, evaluation, live),
        *_regression(policy.regression, evaluation),
    ]


def _leaks(policy: GateSpec, evaluation: Evaluation) -> Iterator[str]:
    if evaluation.leaks is not None and (policy.measures or policy.compares):
        yield f"its held-out votes prove nothing: {evaluation.leaks}"


def _metrics(policy: GateSpec, evaluation: Evaluation) -> Iterator[str]:
    votes = evaluation.votes
    known = votes.metrics if votes else {}
    for name, threshold in policy.metrics():
        yield from _missed(name, threshold, known.get(name, UNKNOWN), _too_few(votes))
    answered = f"{evaluation.answers} prompts were answered, it takes {FEWEST_PROMPTS} (evaluation.samples)"
    for name, asked, found in (
        ("answer_tokens", policy.answer_tokens, evaluation.answer_tokens),
        ("kl_on_policy", policy.kl_on_policy, evaluation.kl_on_policy),
    ):
        if asked is not None:
            yield from _missed(name, asked, found, answered)


def _too_few(votes: Votes | None) -> str:
    """Why there may be no interval, and the way out."""
    if votes is None:
        return "no votes are held out (data.validation)"
    up, down = (votes.by_class[side].prompts if side in votes.by_class else 0 for side in ("up", "down"))
    if votes.prompts >= FEWEST_PROMPTS and min(up, down) >= FEWEST_OF_A_CLASS:
        return "these votes do not say"
    return (
        f"{votes.prompts} prompts are held out, {up} with a thumbs-up and {down} with a thumbs-down; it takes "
        f"{FEWEST_PROMPTS}, and {FEWEST_OF_A_CLASS} of each (raise data.validation, or collect more votes)"
    )


def _comparisons(policy: GateSpec, evaluation: Evaluation, live: str | None) -> Iterator[str]:
    if not policy.compares:
        return
    if live is not None and live not in {opponent.model for opponent in evaluation.opponents}:
        yield f"it was not compared with {live}, which is live"
    if not evaluation.opponents:
        yield "it was compared with no model"
    if policy.difference is not None and policy.difference.measures:
        yield from _differences(policy.difference, evaluation, live)
    for opponent in evaluation.opponents:
        if policy.win_rate is not None:
            rate = opponent.win_rate
            found = rate.rate if rate and rate.suffices else UNKNOWN
            yield from _missed(f"win_rate against {opponent.model}", policy.win_rate, found, _undecided(rate))


def _differences(policy: MetricThresholds, evaluation: Evaluation, live: str | None) -> Iterator[str]:
    """To the reference there is none. That is no bar where another model is compared with, and the reference is not
    what would be replaced.
    """
    others = [opponent for opponent in evaluation.opponents if not opponent.is_reference]
    for opponent in evaluation.opponents:
        if opponent.is_reference and (not others or opponent.model == live):
            yield (
                f"difference to {opponent.model}: unknown, it is the reference itself, whose rewards are all 0 by "
                "definition; keep an earlier reference (model.reference), or ask for a win_rate instead"
            )
    for opponent in others:
        for name, threshold in policy.metrics():
            known = opponent.difference.get(name, UNKNOWN)
            yield from _missed(f"difference.{name} to {opponent.model}", threshold, known, _too_few(evaluation.votes))


def _undecided(rate: WinRate | None) -> str:
    if rate is None:
        return "there was no judge"
    pairs = rate.decided + rate.undecided
    return f"the judge decided {rate.decided} of {pairs} pairs, it takes {FEWEST_DECIDED:.0%}"


def _regression(wanted: float | str | None, evaluation: Evaluation) -> Iterator[str]:
    if wanted is None:
        return
    if not evaluation.regression:
        yield "regression: no prompts were tried (evaluation.regression names none)"
        return
    failed = [case.name for case in evaluation.regression if not case.passed]
    total = len(evaluation.regression)
    if total - len(failed) < (1.0 if isinstance(wanted, str) else wanted) * total:
        wants = "all" if isinstance(wanted, str) else f"{wanted:.0%}"
        yield f"regression: {len(failed)} of {total} prompts failed ({_shortened(failed)}), {wants} must pass"


def _missed(name: str, threshold: Threshold, found: Estimate, why_not: str) -> Iterator[str]:
    """A line per bound that is not met. `why_not`: what an unknown one is for want of."""
    for wanted, cautious, side in ((threshold.min, "lower", "min"), (threshold.max, "upper", "max")):
        if wanted is None:
            continue
        bound = cautious if threshold.bound == "cautious" else threshold.bound
        value = {"lower": found.low, "value": found.value, "upper": found.high}[bound]
        if value is None:
            no_interval = "" if found.value is None else f"{bound} bound of {found.value:.4g} "
            yield f"{name}: {no_interval}unknown, {side} is {wanted:g}: {why_not}"
        elif value < wanted if side == "min" else value > wanted:
            yield f"{name}: {_said(found, bound)}, {side} is {wanted:g}"


def _said(found: Estimate, bound: str) -> str:
    if bound == "value":
        return f"{found.value:.4g}"
    return f"{bound} bound {found.low if bound == 'lower' else found.high:.4g} (of {found.value:.4g})"


def _shortened(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
