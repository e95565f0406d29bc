"""Which of two answers is better: a rule or a judge is asked in both orders, and the verdicts become a win rate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol

from bco_ray.storage.evaluations import Estimate, WinRate
from bco_ray.telemetry import Advance

Verdict = Literal["a", "b", "tie"]
Outcome = Literal["win", "tie", "loss", "swayed", "undecided"]
"""Of the first answer. `swayed`: the order decided, so it counts as a tie."""

_OUTCOMES: dict[tuple[Verdict, Verdict], Outcome] = {("a", "b"): "win", ("b", "a"): "loss", ("tie", "tie"): "tie"}


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt (as text); `ours` is the model's that is evaluated."""

    prompt: str
    ours: str
    theirs: str


class Judge(Protocol):
    """`name` is written down; `compare` is called from several threads at once."""

    @property
    def name(self) -> str: ...

    def compare(self, prompt: str, a: str, b: str) -> Verdict | None:
        """None if there is no verdict to be had."""


@dataclass(frozen=True)
class Rule:
    """Prefers the answer with the higher score."""

    name: str
    score: Callable[[str], float]

    def compare(self, prompt: str, a: str, b: str) -> Verdict:
        """Equal scores are a tie."""
        first, second = self.score(a), self.score(b)
        return "a" if first > second else "b" if second > first else "tie"


def rule(kind: Literal["contains", "regex", "shorter", "longer"], pattern: str | None) -> Rule:
    """By name, as `config.evaluation.JudgeSpec` has them."""
    wanted = pattern or ""
    if kind == "contains":
        return Rule(f"rule: contains {wanted!r}", lambda text: float(wanted in text))
    if kind == "regex":
        expression = re.compile(wanted)
        return Rule(f"rule: regex {wanted!r}", lambda text: float(expression.search(text) is not None))
    sign = -1.0 if kind == "shorter" else 1.0
    return Rule(f"rule: {kind}", lambda text: sign * len(text))


def judge_pairs(judge: Judge, pairs: Sequence[Pair], *, concurrency: int, progress: Advance) -> list[Outcome]:
    """In the order of the pairs; so many are judged at once. Equal answers need no judge."""
    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        running = {pool.submit(_both_orders, judge, pair): number for number, pair in enumerate(pairs)}
        try:
            for future in as_completed(running):
                outcomes[running[future]] = future.result()
                progress(len(outcomes), len(pairs), "pairs judged")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [outcomes[number] for number in range(len(pairs))]


def win_rate(outcomes: Sequence[Outcome], judge: str, confidence: float) -> WinRate:
    """A tie is half a win. The interval is Wilson's, which is cautious about ties."""
    seen = Counter(outcomes)
    decided = len(outcomes) - seen["undecided"]
    ties = seen["tie"] + seen["swayed"]
    score = seen["win"] + ties / 2
    low, high = wilson(score, decided, confidence)
    return WinRate(
        judge=judge,
        wins=seen["win"],
        ties=ties,
        losses=seen["loss"],
        swayed=seen["swayed"],
        undecided=seen["undecided"],
        rate=Estimate(value=score / decided, low=low, high=high) if decided else Estimate(value=None),
    )


def wilson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927), (0, 1) of no trials; half a success is less than half sure."""
    if not trials:
        return 0.0, 1.0
    z, rate = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (rate * (1 - rate) / trials + z**2 / (4 * trials**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _both_orders(judge: Judge, pair: Pair) -> Outcome:
    if pair.ours == pair.theirs:
        return "tie"
    first = judge.compare(pair.prompt, pair.ours, pair.theirs)
    second = judge.compare(pair.prompt, pair.theirs, pair.ours) if first else None
    if first is None or second is None:
        return "undecided"
    return _OUTCOMES.get((first, second), "swayed")
