"""An evaluation as a page (report.html, self-contained) and as the model's card (README.md)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bco_ray.evaluation.prompts import as_text
from bco_ray.pipeline.pages import templates
from bco_ray.storage.evaluations import CARD, PAGE, Estimate, Evaluation
from bco_ray.storage.gate import policy_of, refusals

MOST_SHOWN = 24
_SECTION = "\n## Evaluation\n"

METRICS = {
    "auc": "AUC of the implicit reward",
    "accuracy": "accuracy at delta",
    "balanced_accuracy": "accuracy at delta, classes weighing the same",
    "margin": "mean reward of ups less that of downs",
    "kl": "KL estimate to the reference on rated answers, nats per answer",
    "brier": "Brier score (0.25: says nothing)",
    "ece": "calibration error",
    "length_correlation": "rank correlation of reward and length",
}
"""What each is, in words."""


def pages_of(found: Evaluation, rows: Sequence[Mapping[str, Any]], card: str) -> dict[str, bytes]:
    """The files to write beside an evaluation. `rows`: as in answers.jsonl; `card`: the version's own."""
    from bco_ray.pipeline.charts import picture
    from bco_ray.pipeline.evaluation_charts import charts_of

    pictures = [(chart.title, base64.b64encode(picture(chart)).decode("ascii")) for chart in charts_of(found)]
    return {PAGE: render(found, rows, pictures).encode(), CARD: card_with(card, found).encode()}


def render(found: Evaluation, rows: Sequence[Mapping[str, Any]], pictures: Sequence[tuple[str, str]]) -> str:
    """The page. `pictures`: (title, PNG as base64). All text is escaped: it comes from people and models."""
    environment = templates(Path(__file__).parent)
    environment.filters |= {"estimate": said, "conversation": as_text}
    page: str = environment.get_template("evaluation.html").render(
        found=found,
        when=datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reasons=gate_reasons(found),
        names=METRICS,
        rows=rows[:MOST_SHOWN],
        more=max(0, len(rows) - MOST_SHOWN),
        pictures=pictures,
    )
    return page.encode("utf-8", "replace").decode()


def gate_reasons(found: Evaluation) -> list[str] | None:
    """What its own policy has against it, as far as the evaluation alone tells; None: it has none."""
    policy = policy_of(None, found)
    return None if policy is None else refusals(policy, found, None)


def card_with(card: str, found: Evaluation) -> str:
    """The version's card and what was found out since."""
    return card.rstrip() + "\n" + _SECTION + "\n" + "\n\n".join(part for part in _parts(found) if part) + "\n"


def said(estimate: Estimate | None) -> str:
    """`0.7 [0.6, 0.8]`."""
    if estimate is None or estimate.value is None:
        return "-"
    value = f"{estimate.value:.3g}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _parts(found: Evaluation) -> list[str]:
    when = datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d")
    confidence = found.settings.get("confidence", 0.95)
    intro = f"Of {when}, by bco-ray {found.bco_ray}. Intervals are of {confidence:.0%}, over prompts and users."
    return [
        intro,
        _votes(found),
        _answers(found),
        _comparisons(found),
        _regression(found),
        _gate(found),
        *_quoted(found.notes),
    ]


def _votes(found: Evaluation) -> str:
    if found.votes is None:
        return ""
    v = found.votes
    lines = [f"| {METRICS.get(name, name)} | {said(estimate)} |" for name, estimate in v.metrics.items()]
    head = f"{v.rows:,} held-out votes on {v.prompts:,} prompts, {v.ups:,} of them thumbs-up:"
    return "\n".join([head, "", "| on held-out votes | value |", "|---|---|", *lines])


def _answers(found: Evaluation) -> str:
    if not found.answers:
        return ""
    far = f"KL to the reference on its own answers: {said(found.kl_on_policy)} nats per answer."
    return f"Of {found.answers} held-out prompts. Mean length of its answers: {said(found.answer_tokens)} tokens. {far}"


def _comparisons(found: Evaluation) -> str:
    lines = [
        f"| {_cell(other.model)} ({other.role}) | {said(other.difference.get('auc'))} | "
        f"{said(other.win_rate.rate if other.win_rate else None)} | {said(other.answer_tokens)} |"
        for other in found.opponents
    ]
    if not lines:
        return ""
    judges = {other.win_rate.judge for other in found.opponents if other.win_rate}
    by = [f"Win rates by {', '.join(sorted(judges))}.", ""] if judges else []
    table = ["| compared with | AUC better by | win rate | its tokens per answer |", "|---|---|---|---|", *lines]
    return "\n".join([*by, *table])


def _regression(found: Evaluation) -> str:
    if not found.regression:
        return ""
    failed = [case for case in found.regression if not case.passed]
    lines = [f"- {_cell(case.name)}: {_cell('; '.join(case.problems))}" for case in failed]
    passed = len(found.regression) - len(failed)
    return "\n".join([f"Regression prompts: {passed} of {len(found.regression)} passed.", *lines])


def _gate(found: Evaluation) -> str:
    reasons = gate_reasons(found)
    if reasons is None:
        return ""
    return "\n".join(["Gate: passed." if not reasons else "Gate: not passed.", *(f"- {_cell(r)}" for r in reasons)])


def _quoted(notes: Sequence[str]) -> list[str]:
    return [f"> {_cell(note)}" for note in notes]


def _cell(text: str) -> str:
    """Names of files and models in a table."""
    return text.replace("|", "\\|").replace("\n", " ")
