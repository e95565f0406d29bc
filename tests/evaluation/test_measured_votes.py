"""All numbers about one model's rewards, and about two models' on the same votes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from bco_ray.evaluation.heldout import reward_metrics
from bco_ray.evaluation.votes import MOST_SOURCES, JudgedVotes, Settings, measure, named, told_apart
from bco_ray.objective import SourceOffsets
from bco_ray.pipeline.evaluate import notes_on

SETTINGS = Settings(beta=0.1, confidence=0.95, resamples=200, bins=10, seed=0)


def made(rows: int, *, skill: float, seed: int = 0) -> JudgedVotes:
    """Four votes per prompt; ups have rewards that are `skill` higher, and longer answers."""
    random = np.random.default_rng(seed)
    up_N = random.random(rows) < 0.6
    return JudgedVotes(
        reward_N=random.normal(size=rows) + skill * up_N - 1.0,
        label_N=up_N,
        logp_N=random.normal(size=rows) - 20,
        tokens_N=random.integers(5, 50, rows) + 10 * up_N,
        prompt_N=np.arange(rows) // 4,
        source_N=named(pa.chunked_array([[("web", "app", None)[n % 3] for n in range(rows)]])),
        user_N=np.arange(rows),
    )


def test_the_numbers_are_those_of_training() -> None:
    votes = made(800, skill=1.0)
    found = measure(votes, -0.5, "run", SETTINGS).votes
    known = reward_metrics(votes.reward_N, votes.label_N, delta=-0.5)
    assert found.metrics["auc"].value == pytest.approx(known["eval_auc"])
    assert found.metrics["accuracy"].value == pytest.approx(known["eval_rewards/accuracies"])
    assert found.metrics["margin"].value == pytest.approx(known["eval_rewards/margins"])
    assert found.by_class["up"].metrics["reward"].value == pytest.approx(known["eval_rewards/chosen"])
    assert found.metrics["kl"].value == pytest.approx(-votes.reward_N.mean() / 0.1)
    assert (found.rows, found.prompts, found.delta) == (800, 200, -0.5)
    assert found.by_class["up"].rows + found.by_class["down"].rows == 800
    assert sum(found.bars.up) == found.ups


def test_the_reference_knows_nothing() -> None:
    votes = made(400, skill=1.0).at_reference(0.1)
    found = measure(votes, votes.own_delta, "votes", SETTINGS).votes
    for name, value in (("auc", 0.5), ("accuracy", 0.5), ("balanced_accuracy", 0.5), ("margin", 0), ("brier", 0.25),
                        ("ece", 0), ("kl", 0)):  # fmt: skip
        assert found.metrics[name].value == pytest.approx(value, abs=1e-12), name


def test_every_interval_holds_its_value() -> None:
    found = measure(made(800, skill=1.0), -0.5, "run", SETTINGS).votes
    groups = [found.metrics, *(g.metrics for g in [*found.by_class.values(), *found.by_source.values()])]
    for metrics in groups:
        for name, estimate in metrics.items():
            assert estimate.value is not None
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low < estimate.high, name
            assert name == "ece" or estimate.low <= estimate.value <= estimate.high, name


def test_sources_are_named_and_limited() -> None:
    votes = made(400, skill=1.0)
    assert set(measure(votes, 0.0, "votes", SETTINGS).votes.by_source) == {"web", "app", "(none)"}
    many = replace(votes, source_N=named(pa.chunked_array([[f"s{n % 50}" for n in range(400)]])))
    assert len(measure(many, 0.0, "votes", SETTINGS).votes.by_source) == MOST_SOURCES


def test_two_models_are_compared_on_the_same_draws() -> None:
    good = made(800, skill=1.0)
    same = replace(good, reward_N=good.reward_N * 2)
    noisy = replace(good, reward_N=good.reward_N + np.random.default_rng(9).normal(size=800))
    measured = {name: measure(votes, votes.own_delta, "votes", SETTINGS) for name, votes in
                {"good": good, "same": same, "noisy": noisy}.items()}  # fmt: skip
    nothing = measured["good"].less(measured["same"], 0.95)["auc"]
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    better = measured["good"].less(measured["noisy"], 0.95)["auc"]
    assert better.low is not None
    assert better.low > 0
    assert good.same_rows(noisy)
    assert not good.same_rows(replace(good, prompt_N=good.prompt_N + 1))


def test_one_class_and_no_rows_at_all() -> None:
    votes = made(40, skill=0.0)
    ups = replace(votes, label_N=np.ones(40, bool))
    found = measure(ups, ups.own_delta, "votes", SETTINGS).votes
    assert (found.metrics["auc"].value, found.metrics["margin"].value, found.reliability) == (None, None, [])
    assert found.metrics["accuracy"].value is not None
    empty = JudgedVotes(*(column[:0] for column in votes.__dict__.values()))  # type: ignore[arg-type]
    assert measure(empty, 0.0, "votes", SETTINGS).votes.rows == 0


def test_a_hundred_thousand_votes_take_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: a shared machine is no stopwatch."""
    began = time.perf_counter()
    measure(made(100_000, skill=0.5), 0.0, "run", replace(SETTINGS, resamples=20))
    with capsys.disabled():
        print(f" 100,000 votes, 20 resamples: {time.perf_counter() - began:.1f} s ", end="")  # noqa: T201


def test_sources_with_deltas_of_their_own_are_measured_by_them() -> None:
    """As if each reward were larger by its source's offset; what does not ask for delta stays."""
    votes, offsets = made(800, skill=1.0), SourceOffsets({"web": 0.8, "gone": 3.0}, other=-0.5)
    found = measure(votes, -0.5, "run", SETTINGS, offsets).votes
    plain = measure(votes, -0.5, "run", SETTINGS).votes
    moved_N = np.where(votes.source_N == "web", 0.8, -0.5)
    moved = measure(replace(votes, reward_N=votes.reward_N + moved_N), -0.5, "run", SETTINGS).votes
    for name in ("accuracy", "balanced_accuracy", "brier", "ece"):
        assert found.metrics[name].value == pytest.approx(moved.metrics[name].value)
    for name in ("auc", "margin", "kl", "length_correlation"):
        assert found.metrics[name] == plain.metrics[name]
    assert found.by_source["web"].metrics["accuracy"].value == moved.by_source["web"].metrics["accuracy"].value
    assert (found.delta, found.delta_by_source) == (-0.5, {"web": -1.3, "gone": -3.5})
    assert plain.delta_by_source == {}
    observed = [[bin_.observed for bin_ in votes_.reliability] for votes_ in (found, moved)]
    assert observed[0] == pytest.approx(observed[1])


def no_skill(prompts: int, downs: int, seed: int) -> JudgedVotes:
    """A vote per prompt, so many of them down, and rewards that know nothing."""
    votes = made(prompts, skill=0.0, seed=seed)
    return replace(votes, label_N=np.arange(prompts) >= downs, prompt_N=np.arange(prompts))


@pytest.mark.parametrize(("prompts", "downs"), [(2, 1), (4, 2), (29, 14), (30, 9), (30, 21)])
def test_a_few_prompts_make_nobody_sure(prompts: int, downs: int) -> None:
    """A model without skill is above 0.55 in a quarter of tries with four prompts; an interval would say it is sure."""
    found = [measure(no_skill(prompts, downs, seed), 0.0, "run", SETTINGS) for seed in range(20)]
    aucs = [one.votes.metrics["auc"] for one in found]
    assert all(auc.value is not None and auc.low is None and auc.high is None for auc in aucs)
    assert found[0].less(found[1], 0.95)["margin"].low is None
    assert (found[0].votes.metrics["kl"].low is None) == (prompts < 30)


def test_a_model_without_skill_passes_no_more_often_than_the_confidence_says() -> None:
    lows = [measure(no_skill(30, 10, seed), 0.0, "run", SETTINGS).votes.metrics["auc"].low for seed in range(150)]
    assert sum(low is not None and low > 0.5 for low in lows) <= 0.08 * 150
    assert all(low is not None for low in lows)


def test_who_votes_much_makes_nobody_surer() -> None:
    """Ten people, each with a taste of their own, vote forty times on prompts that nobody else has."""
    random = np.random.default_rng(0)
    user_N = np.arange(400) // 40
    votes = made(400, skill=0.0)
    votes = replace(votes, prompt_N=np.arange(400), reward_N=random.normal(size=10)[user_N] + votes.reward_N / 10)
    alone = measure(votes, 0.0, "run", SETTINGS).votes.metrics["kl"]
    known = measure(replace(votes, user_N=user_N), 0.0, "run", SETTINGS).votes.metrics["kl"]
    assert (known.value, alone.value) == (pytest.approx(alone.value), alone.value)
    assert known.high - known.low > 3 * (alone.high - alone.low)  # type: ignore[operator]
    by_prompt = measure(replace(votes, prompt_N=user_N * 40 + np.arange(400) % 4), 0.0, "run", SETTINGS).votes
    both = measure(replace(votes, prompt_N=user_N * 40 + np.arange(400) % 4, user_N=user_N), 0.0, "run", SETTINGS).votes
    for name, estimate in both.metrics.items():
        narrow = by_prompt.metrics[name]
        assert estimate.low <= narrow.low <= narrow.high <= estimate.high, name  # type: ignore[operator]


def test_votes_without_a_user_are_each_on_their_own() -> None:
    numbers = told_apart(pa.chunked_array([["a", None, "b"], ["a", None]], pa.string())).tolist()
    assert numbers[0] == numbers[3]
    assert len(set(numbers)) == 4
    assert len(set(told_apart(pa.chunked_array([[None, None]], pa.string())).tolist())) == 2
    assert told_apart(pa.chunked_array([], pa.string())).tolist() == []


def test_whoever_voted_is_counted_and_few_are_told_of() -> None:
    votes = made(400, skill=1.0)
    few = measure(replace(votes, user_N=np.arange(400) % 3), -0.5, "run", SETTINGS)
    many = measure(votes, -0.5, "run", SETTINGS)
    assert (few.users, many.users) == (3, 400)
    assert notes_on([], few) == ["The held-out votes are of 3 people: no interval says what others would vote."]
    assert notes_on([], many) == []
