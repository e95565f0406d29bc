"""May `prod` point at a version? A pure function of its policy, its last evaluation, and what is live now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bco_ray.config.gate import GateSpec, Threshold
from bco_ray.errors import StorageError
from bco_ray.storage.evaluations import Estimate, Evaluation, Opponent

_UNKNOWN = Estimate(value=None)


def policy_of(registered: Mapping[str, Any] | None, evaluation: Evaluation | None) -> GateSpec | None:
    """The last evaluation's, if the spec it was made with has one, else the one the version was registered with.

    Raises StorageError for one that this version of bco-ray does not understand.
    """
    found = evaluation.gate if evaluation is not None and evaluation.gate is not None else registered
    if found is None:
        return None
    try:
        return GateSpec.model_validate(dict(found))
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
        *_metrics(policy, evaluation),
        *_comparisons(policy, evaluation, live),
        *_regression(policy.regression, evaluation),
    ]


def _metrics(policy: GateSpec, evaluation: Evaluation) -> Iterator[str]:
    known = evaluation.votes.metrics if evaluation.votes else {}
    for name, threshold in policy.metrics():
        yield from _missed(name, threshold, known.get(name, _UNKNOWN))
    if policy.answer_tokens is not None:
        yield from _missed("answer_tokens", policy.answer_tokens, evaluation.answer_tokens)


def _comparisons(policy: GateSpec, evaluation: Evaluation, live: str | None) -> Iterator[str]:
    if not policy.compares:
        return
    if live is not None and live not in {opponent.model for opponent in evaluation.opponents}:
        yield f"it was not compared with {live}, which is live"
    if not evaluation.opponents:
        yield "it was compared with no model"
    for opponent in evaluation.opponents:
        yield from _against(policy, opponent)


def _against(policy: GateSpec, opponent: Opponent) -> Iterator[str]:
    for name, threshold in policy.difference.metrics() if policy.difference else ():
        known = opponent.difference.get(name, _UNKNOWN)
        yield from _missed(f"difference.{name} to {opponent.model}", threshold, known)
    if policy.win_rate is not None:
        rate = opponent.win_rate.rate if opponent.win_rate else _UNKNOWN
        yield from _missed(f"win_rate against {opponent.model}", policy.win_rate, rate)


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


def _missed(name: str, threshold: Threshold, found: Estimate) -> Iterator[str]:
    """A line per bound that is not met."""
    for wanted, cautious, side in ((threshold.min, "lower", "min"), (threshold.max, "upper", "max")):
        if wanted is None:
            continue
        bound = cautious if threshold.bound == "cautious" else threshold.bound
        value = {"lower": found.low, "value": found.value, "upper": found.high}[bound]
        if value is None:
            yield f"{name}: unknown, {side} is {wanted:g}"
        elif value < wanted if side == "min" else value > wanted:
            yield f"{name}: {_said(found, bound)}, {side} is {wanted:g}"


def _said(found: Estimate, bound: str) -> str:
    if bound == "value":
        return f"{found.value:.4g}"
    return f"{bound} bound {found.low if bound == 'lower' else found.high:.4g} (of {found.value:.4g})"


def _shortened(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
