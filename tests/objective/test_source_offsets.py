"""A delta per source: what it is, where it is the one delta, and that it is what a log's odds ask for."""

import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.objective import RewardShift, SourceOffsets, bco_loss, source_offsets, window_loss

gentle = settings(derandomize=True, deadline=None, max_examples=60)
weights = st.floats(0, 1e4)
logs = st.dictionaries(st.one_of(st.none(), st.sampled_from("abcdefgh")), st.tuples(weights, weights), max_size=9)

LOG: dict[str | None, tuple[float, float]] = {"web": (80, 20), "app": (2, 8), "mail": (3, 0), None: (5, 5)}


def class_means(log: dict[str | None, tuple[float, float]], offsets: SourceOffsets) -> tuple[float, float]:
    total = [sum(group[kind] for group in log.values()) for kind in (0, 1)]
    return tuple(sum(offsets.of(s) * group[kind] for s, group in log.items()) / total[kind] for kind in (0, 1))  # type: ignore[return-value]


@gentle
@given(logs, st.sampled_from([0.5, 32.0, 1e6, math.inf]), st.integers(1, 10))
def test_they_are_finite_centred_and_depend_on_no_order(
    log: dict[str | None, tuple[float, float]], shrinkage_rows: float, most: int
) -> None:
    found = source_offsets(log, shrinkage_rows=shrinkage_rows, most=most)
    turned = list(log.items())
    random.Random(0).shuffle(turned)
    assert source_offsets(dict(turned), shrinkage_rows=shrinkage_rows, most=most) == found
    assert all(map(math.isfinite, [found.other, *found.named.values()]))
    assert len(found.named) <= most
    if all(sum(group[kind] for group in log.values()) > 0 for kind in (0, 1)):
        assert sum(class_means(log, found)) == pytest.approx(0, abs=1e-9)


def test_a_source_with_more_ups_has_a_lower_delta() -> None:
    found = source_offsets(LOG, shrinkage_rows=8, most=16)
    assert found.named["web"] > found.other > found.named["app"]
    deltas = found.deltas(-0.3)
    assert deltas["app"] == -0.3 - found.named["app"] > deltas["web"]
    assert found.of("never seen") == found.of(None) == found.other


def test_it_is_the_log_odds_against_those_of_the_log() -> None:
    """Two sources, no shrinkage worth the name: they lie apart by the difference of their log odds."""
    found = source_offsets({"a": (80, 20), "b": (20, 80)}, shrinkage_rows=1e-9, most=16)
    assert found.named["a"] - found.named["b"] == pytest.approx(2 * math.log(4), rel=1e-6)
    assert found.named["a"] == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("log", [{"a": (80, 20)}, {None: (80, 20)}, {"a": (80, 20), "b": (0, 0)}])
def test_one_source_has_the_one_delta_exactly(log: dict[str | None, tuple[float, float]]) -> None:
    found = source_offsets(log, shrinkage_rows=32, most=16)
    assert {found.of(name) for name in log if log[name] != (0, 0)} == {0.0}


@pytest.mark.parametrize("log", [{}, {"a": (7, 0), "b": (3, 0)}, {"a": (0, 0)}])
def test_a_log_without_both_classes_has_one_delta(log: dict[str | None, tuple[float, float]]) -> None:
    found = source_offsets(log, shrinkage_rows=32, most=16)
    assert {found.other, *found.named.values()} == {0.0}


def test_shrinkage_goes_from_the_source_to_the_log() -> None:
    sizes = [abs(source_offsets(LOG, shrinkage_rows=n, most=16).named["app"]) for n in (1e-6, 8, 32, 1e4, math.inf)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0.0
    small = source_offsets({**LOG, "app": (1, 0)}, shrinkage_rows=32, most=16)
    assert abs(small.named["app"]) < 0.1, "one vote says next to nothing"


def test_the_largest_are_named_and_the_rest_is_one() -> None:
    found = source_offsets(LOG, shrinkage_rows=32, most=2)
    assert list(found.named) == ["web", "app"]
    rest: dict[str | None, tuple[float, float]] = {"web": (80, 20), "app": (2, 8), None: (8, 5)}
    assert found == source_offsets(rest, shrinkage_rows=32, most=2)
    assert list(source_offsets({"b": (1, 1), "a": (1, 1)}, shrinkage_rows=32, most=1).named) == ["a"]


@pytest.mark.parametrize("shrinkage_rows", [0.0, -1.0, math.nan])
def test_no_shrinkage_is_refused(shrinkage_rows: float) -> None:
    with pytest.raises(ValueError, match="shrinkage_rows must be above 0"):
        source_offsets(LOG, shrinkage_rows=shrinkage_rows, most=1)


def test_there_and_back_is_exact() -> None:
    found = source_offsets(LOG, shrinkage_rows=32, most=2)
    assert SourceOffsets.from_state(json.loads(json.dumps(found.state_dict(), allow_nan=False))) == found


@pytest.mark.parametrize("parts", [[8, 16], [1] * 24, [0, 5, 0, 19]])
def test_a_window_may_be_cut_anyhow(parts: list[int]) -> None:
    """1 x 8 = 8 x 1, and workers are only another cut: a delta per row changes nothing about sums."""
    generator = torch.Generator().manual_seed(5)
    policy_N, reference_N, delta_N = (torch.randn(24, generator=generator, dtype=torch.float64) for _ in range(3))
    label_N = torch.rand(24, generator=generator) < 0.4
    whole = bco_loss(policy_N, reference_N, label_N, beta=0.3, delta=delta_N)
    order = torch.randperm(24, generator=generator)
    pieces = [bco_loss(policy_N[i], reference_N[i], label_N[i], beta=0.3, delta=delta_N[i]) for i in order.split(parts)]
    added = sum(pieces[1:], pieces[0])
    torch.testing.assert_close(added.to_vector(), whole.to_vector(), rtol=1e-12, atol=1e-12)


def test_the_policy_need_not_bend_where_sources_vote_by_habit() -> None:
    """The same 50:50 answers everywhere, thumbs that say nothing of them but where they were given: rewards stay 0.

    One reward per source, as a policy has that can tell them by their prompts, trained to the end. With one delta it
    takes the habits for merits.
    """
    label_N = torch.tensor([True] * 80 + [False] * 20 + [True] * 20 + [False] * 80)
    source_N = torch.tensor([0] * 100 + [1] * 100)
    offsets = source_offsets({"0": (80, 20), "1": (20, 80)}, shrinkage_rows=1e-6, most=2)
    offset_N = torch.tensor([offsets.of(str(source)) for source in source_N.tolist()])
    moved = {}
    for name, own_N in (("one", torch.zeros(200)), ("own", offset_N)):
        logp_S, shift = torch.zeros(2, requires_grad=True), RewardShift(half_life_rows=0)
        for _ in range(50):
            delta_N = shift.delta - own_N
            sums = bco_loss(logp_S[source_N], torch.zeros(200), label_N, beta=1.0, delta=delta_N)
            (slope_S,) = torch.autograd.grad(window_loss(sums, chosen_total=100, rejected_total=100), logp_S)
            logp_S = (logp_S - slope_S).detach().requires_grad_()
            shift = shift.advance(sums.shift_sums())
        moved[name] = float((logp_S[0] - logp_S[1]).detach())
    assert moved["own"] == pytest.approx(0, abs=1e-5)
    assert moved["one"] > 1
