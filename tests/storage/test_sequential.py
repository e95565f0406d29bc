"""The interval of a difference of up-rates may be looked at after every vote and is still rarely wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from bco_ray.storage.sequential import Thumbs, difference_interval

RUNS, VOTES = 400, 400


def ever_wrong(p: float, q: float, *, share: float, seed: int, confidence: float = 0.9) -> float:
    """Share of runs in which the truth was outside after some vote: the definition, on a martingale at (p, q) itself.

    The interval is wrong only if the martingale of the true pair has reached 1 / alpha.
    """
    random = np.random.default_rng(seed)
    new = random.random((RUNS, VOTES)) < share
    up = np.where(new, random.random((RUNS, VOTES)) < p, random.random((RUNS, VOTES)) < q)
    evidence = np.zeros((RUNS, VOTES))
    for mine, rate in ((new, p), (~new, q)):
        ups, downs = np.cumsum(mine & up, 1), np.cumsum(mine & ~up, 1)
        evidence += betaln(ups + 0.5, downs + 0.5) - betaln(0.5, 0.5) - ups * np.log(rate) - downs * np.log(1 - rate)
    return float((evidence.max(1) >= -np.log(1 - confidence)).mean())


@pytest.mark.parametrize(("p", "q", "share"), [(0.5, 0.5, 0.5), (0.7, 0.7, 0.1), (0.2, 0.3, 0.5), (0.05, 0.05, 0.3)])
def test_looking_after_every_vote_is_wrong_no_more_often_than_it_says(p: float, q: float, share: float) -> None:
    assert ever_wrong(p, q, share=share, seed=0) < 0.10 + 0.04  # three standard errors of 400 runs


def stopped_early(p: float, q: float, *, runs: int, votes: int, seed: int) -> tuple[int, int]:
    """How many runs end with `better`, and with `worse`, of somebody who looks after every 25th vote and stops at
    the first sign.
    """
    random = np.random.default_rng(seed)
    better = worse = 0
    for _ in range(runs):
        new, up = random.random(votes) < 0.5, random.random(votes)
        up_N = np.where(new, up < p, up < q)
        for n in range(25, votes + 1, 25):
            counts = [Thumbs(int((m & up_N[:n]).sum()), int((m & ~up_N[:n]).sum())) for m in (new[:n], ~new[:n])]
            low, high = difference_interval(*counts, 0.9)
            if low > 0 or high < 0:
                better, worse = better + (low > 0), worse + (high < 0)
                break
    return better, worse


def test_whoever_stops_at_the_first_sign_is_rarely_fooled_and_sees_what_is_there() -> None:
    better, worse = stopped_early(0.6, 0.6, runs=60, votes=300, seed=1)
    assert better + worse <= 0.10 * 60 + 7
    better, worse = stopped_early(0.75, 0.45, runs=20, votes=300, seed=2)
    assert better >= 15
    assert worse == 0


@settings(max_examples=60, deadline=None)
@given(*[st.integers(0, 60)] * 4)
def test_the_interval_holds_what_was_seen_and_turns_with_the_sides(a: int, b: int, c: int, d: int) -> None:
    new, old = Thumbs(a, b), Thumbs(c, d)
    low, high = difference_interval(new, old, 0.95)
    assert -1 <= low <= high <= 1
    other = difference_interval(old, new, 0.95)
    assert (-other[1], -other[0]) == pytest.approx((low, high), abs=1e-6)
    wider = difference_interval(new, old, 0.99)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9
    if new.votes and old.votes:
        seen = new.ups / new.votes - old.ups / old.votes
        assert low - 1e-6 <= seen <= high + 1e-6


def test_no_votes_say_nothing_and_many_say_much() -> None:
    assert difference_interval(Thumbs(), Thumbs(5, 5), 0.95) == (-1.0, 1.0)
    low, high = difference_interval(Thumbs(7000, 3000), Thumbs(6000, 4000), 0.95)
    assert 0.06 < low < 0.1 < high < 0.14
    assert difference_interval(Thumbs(10, 0), Thumbs(10, 0), 0.95)[1] < 0.5
    assert Thumbs(3, 1).up_rate == 0.75
    assert Thumbs().up_rate is None
