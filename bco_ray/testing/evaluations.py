"""An evaluation nobody made, for tests of what is done with one."""

from __future__ import annotations

from typing import Any

from bco_ray.storage.evaluations import (
    Estimate,
    Evaluation,
    Group,
    Opponent,
    RegressionCase,
    ReliabilityBin,
    RewardBars,
    Votes,
    WinRate,
)  # fmt: skip


def made_evaluation(model: str, *, against: str | None = None, gate: dict[str, Any] | None = None) -> Evaluation:
    """AUC 0.7 [0.6, 0.8], KL 1 [0, 2], on-policy 5 [3, 7], answers of 12 [10, 14] tokens; one of two regression prompts
    failed.

    Against another model: AUC better by 0.1 [-0.02, 0.2], win rate 0.6 [0.45, 0.74].
    """
    return Evaluation(
        model=model,
        at=1_700_000_000,
        run="bot-0123",
        scored="abcd",
        beta=0.1,
        settings={"confidence": 0.95, "resamples": 1000},
        votes=_votes(),
        answers=16,
        answer_tokens=Estimate(value=12, low=10, high=14),
        kl_on_policy=Estimate(value=5, low=3, high=7),
        opponents=[_opponent(against)] if against else [],
        regression=[
            RegressionCase(name="greeting", problems=[], answer="Hello!"),
            RegressionCase(name="hours", problems=["lacks 'nine'"], answer="We are open."),
        ],
        gate=gate,
        notes=["a note"],
        bco_ray="0",
    )


def _votes() -> Votes:
    metrics = {
        "auc": Estimate(value=0.7, low=0.6, high=0.8),
        "accuracy": Estimate(value=0.65, low=0.6, high=0.7),
        "margin": Estimate(value=None),
        "kl": Estimate(value=1, low=0, high=2),
        "brier": Estimate(value=0.24, low=0.23, high=0.25),
    }
    group = Group(rows=20, ups=12, prompts=20, metrics={"reward": Estimate(value=0.1, low=0.0, high=0.2)})
    return Votes(
        rows=40,
        ups=24,
        prompts=36,
        metrics=metrics,
        delta=-0.1,
        delta_from="run",
        by_class={"up": group, "down": group},
        by_source={"web": Group(rows=40, ups=24, prompts=36, metrics=metrics)},
        reliability=[ReliabilityBin(rows=20, low=0.2, high=0.4, predicted=0.3, observed=0.25)],
        bars=RewardBars(edges=[-1.0, 0.0, 1.0], up=[4, 20], down=[10, 6]),
    )


def _opponent(model: str) -> Opponent:
    rate = WinRate(
        judge="rule: shorter", wins=8, ties=3, losses=5, swayed=1, undecided=0,
        rate=Estimate(value=0.6, low=0.45, high=0.74),
    )  # fmt: skip
    return Opponent(
        model=model,
        role="live",
        votes=_votes(),
        difference={"auc": Estimate(value=0.1, low=-0.02, high=0.2)},
        answer_tokens=Estimate(value=9, low=8, high=10),
        win_rate=rate,
    )
