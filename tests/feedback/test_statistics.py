"""Sums of a log: exact against plain counting, the same however the log is cut, bounded however large it is."""

import json
import math
import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.feedback.over_time import days
from bco_ray.feedback.sketches import HeavyKeys, Histogram, KeySample
from bco_ray.feedback.statistics import DAYS_KEPT, KEYS_KEPT, KEYS_SHOWN, LogSums, characters
from bco_ray.schema import SETTLED


def vote(prompt="hi", completion="hello", label=True, **fields):
    base = dict.fromkeys(SETTLED.names) | {
        "file": "log.jsonl", "position": 0, "entry": 0, "prompt_hash": sum(map(ord, prompt)) if prompt else 0,
        "id": "x", "weight": 1.0, "tags": [], "siblings": [], "metadata": "{}",
    }  # fmt: skip
    base["prompt"] = json.dumps([{"role": "user", "content": prompt}])
    base["completion"] = json.dumps([{"role": "assistant", "content": completion}])
    return base | {"label": label} | fields


def sums(*votes, **drops):
    return LogSums.of(list(votes), drops)


MARCH, APRIL = 1_741_000_000.0, 1_744_000_000.0


def test_counts_by_source_model_and_month():
    summary = sums(
        vote(source="web", model="bot/1", created_at=MARCH),
        vote(source="web", model="bot/2", created_at=MARCH, updated_at=APRIL, label=False),
        vote(source=None, model="bot/2", created_at=float("nan"), label=False),
    ).summary()
    assert (summary["rows"], summary["ups"], summary["downs"]) == (3, 1, 2)
    assert summary["by_source"] == [
        {"key": "web", "ups": 1, "downs": 1, "up_rate": 0.5},
        {"key": "(none)", "ups": 0, "downs": 1, "up_rate": 0.0},
    ]
    assert [row["key"] for row in summary["by_model"]] == ["bot/2", "bot/1"]
    assert {row["key"]: row["downs"] for row in summary["by_month"]} == {"(none)": 1, "2025-03": 0, "2025-04": 1}


def test_lengths_are_those_of_the_text():
    found = sums(vote(prompt="äöü", completion="x" * 7), vote(completion="y" * 1000, label=False)).summary()["length"]
    assert found["prompt"]["up"]["p50"] == 3
    quantiles = dict.fromkeys(("p10", "p50", "p90", "p99"), 7)
    assert found["completion"]["up"] == {"mean": 7, **quantiles, "most": 7, "bars": [[6, 1]]}
    assert found["completion"]["down"]["p50"] == 1000
    parts = [{"role": "user", "content": [{"type": "text", "text": "abc"}, {"type": "image_url"}]},
             {"role": "assistant", "content": None, "tool_calls": []}]  # fmt: skip
    assert characters(json.dumps(parts)) == 3


def test_prompts_answers_and_agreement():
    summary = sums(
        vote("p", "a", True, user="ann"),
        vote("p", "a", True, user="bob"),
        vote("p", "a", False, user="cy"),
        vote("p", "b", False, user="ann"),
        vote("p", "b", False, user="ann", id="another"),  # two votes of one person are no agreement
        vote("q", "c", True),
        vote("q", "c", True),  # nobody knows whether this is somebody else
        vote("q", "other words", True, response_id="r1", user="ann"),
        vote("q", "same answer", False, response_id="r1", user="bob"),
    ).summary()
    assert summary["prompts"] == {"distinct": 2, "with_both_labels": 2, "most_votes_on_one": 5}
    assert summary["responses"]["distinct"] == 4
    assert summary["agreement"] == {"responses": 2, "pairs": 4, "rate": 1 / 4, "chance": pytest.approx(0.52)}


def test_users_and_extras():
    votes = [vote("p", f"{n}", user="ann", comment="good") for n in range(8)]
    votes += [vote("p", "9", user="bob", siblings=["x"]), vote("p", "10", user="cy", correction="y", comment="")]
    summary = sums(*votes, vote("p", "11"), superseded=2).summary()
    assert summary["users"]["distinct"] == 3
    assert summary["users"]["exact"]
    assert summary["users"]["votes_per_user"]["p50"] == 1
    assert summary["users"]["top_share"]["1"] == 0.8
    assert summary["users"]["top_share"]["10"] == 1
    assert summary["rows_with"] == {"user": 10, "comment": 8, "correction": 1, "siblings": 1}
    assert summary["dropped"] == {"superseded": 2}


def test_nothing_is_a_summary_too():
    assert LogSums.of([]) == LogSums()
    summary = LogSums().summary()
    assert summary["up_rate"] is None
    assert summary["users"]["top_share"] == {}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


VOTES = st.builds(
    vote,
    prompt=st.sampled_from("pqrst"),
    completion=st.text(max_size=40),
    label=st.booleans(),
    source=st.sampled_from([None, "web", "app"]),
    user=st.sampled_from([None, *"abcdef"]),
    updated_at=st.one_of(st.none(), st.floats()),
    conversation_id=st.sampled_from([None, "c"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VOTES, max_size=30), st.randoms(use_true_random=False))
def test_buckets_merge_to_the_same_sums_in_any_order_and_through_json(votes, rng):
    buckets = [LogSums.of([v for v in votes if v["prompt_hash"] % 3 == n], {"neutral": n}) for n in range(3)]
    rng.shuffle(buckets)
    a, b, c = (LogSums.from_state(json.loads(json.dumps(bucket.state_dict()))) for bucket in buckets)
    whole = LogSums.of(votes, {"neutral": 3})
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left.summary()["responses"] == whole.summary()["responses"]
    assert left == right == whole.merge(LogSums()) == LogSums.from_state(left.state_dict())


def of_days(*numbers, label=True):
    return sums(*(vote(f"{n}", created_at=MARCH + 86_400 * n, label=label) for n in numbers))


def test_a_short_log_is_told_by_day_a_longer_one_by_week_and_a_long_one_by_month():
    by_day = of_days(0, 30).summary()["over_time"]
    assert by_day["unit"] == "day"
    assert [row["key"] for row in by_day["rates"]] == ["2025-03-03", "2025-04-02"]
    by_week = of_days(0, 6, 7, 31).merge(of_days(6, label=False)).summary()["over_time"]
    assert by_week["unit"] == "week"
    assert [(row["key"], row["ups"], row["downs"]) for row in by_week["rates"]] == [
        ("2025-03-03", 2, 1), ("2025-03-10", 1, 0), ("2025-03-31", 1, 0),
    ]  # fmt: skip
    by_month = of_days(0, 182).summary()
    assert by_month["over_time"] == {"unit": "month", "rates": by_month["by_month"]}


def test_what_was_summed_before_days_were_counted_is_told_by_month():
    state = of_days(0, 1).state_dict()
    del state["by_day"]
    older = LogSums.from_state(state)
    assert older.summary()["over_time"]["unit"] == "month"
    assert older.merge(of_days(2)).summary()["over_time"]["unit"] == "month", "not every day is known"


def test_days_that_were_let_go_are_not_told():
    whole = of_days(*range(DAYS_KEPT)).merge(of_days(DAYS_KEPT))
    assert len(whole.by_day.held) <= DAYS_KEPT
    assert whole.summary()["over_time"]["unit"] == "month"


def test_days_outside_the_calendar_are_none():
    times = pa.chunked_array([[0.0, MARCH, None, math.nan, math.inf, -1.0, 1e300]], pa.float64())
    assert days(times) == ["1970-01-01", "2025-03-03", None, None, None, None, None]


def test_the_state_stays_small_however_many_names_a_log_holds():
    whole = LogSums()
    for bucket in range(8):
        names = [f"{bucket}-{n}" for n in range(2000)]
        votes = [vote("p", "c", user=name, source=name + "x" * 500, response_id=name) for name in names]
        votes += [vote("p", "c", source=f"{n:03}" + "y" * 500) for n in range(300) for _ in range(2)]
        votes += [vote("p", "c", False, source="big") for _ in range(500)]
        whole = whole.merge(LogSums.of(votes))
    assert len(whole.by_source.held) <= KEYS_KEPT
    summary = whole.summary()
    assert len(summary["by_source"]) == KEYS_SHOWN + 1
    assert summary["by_source"][0] == {"key": "big", "ups": 0, "downs": 4000, "up_rate": 0}
    assert sum(row["ups"] + row["downs"] for row in summary["by_source"]) == 8 * 3100
    assert summary["by_source"][-1]["key"] == "(other)"
    assert len(json.dumps(whole.state_dict())) < 600_000
    assert not summary["users"]["exact"]
    assert summary["users"]["distinct"] == pytest.approx(16_000, rel=0.05)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_lie_within_three_percent(q):
    values = [int(random.Random(n).lognormvariate(6, 2)) for n in range(2000)]
    halves = Histogram.of(values[:700]).merge(Histogram.of(values[700:]))
    exact = sorted(values)[max(math.ceil(q * len(values)), 1) - 1]
    assert halves == Histogram.of(values)
    assert halves.quantile(q) == pytest.approx(exact, rel=0.03, abs=0.5)
    assert halves.mean == sum(values) / 2000
    assert sum(count for _, count in halves.bars()) == 2000


def test_small_numbers_are_exact_and_none_is_none():
    assert [Histogram.of([n]).quantile(0.5) for n in range(20)] == list(range(20))
    assert [Histogram.of([0, n, 10**9]).quantile(0.5) for n in range(20)] == list(range(20))
    assert Histogram().quantile(0.5) is None
    with pytest.raises(ValueError, match="-1"):
        Histogram.of([-1])


def test_a_bar_begins_at_its_edge():
    edges = [edge for edge, _ in Histogram.of(range(1000)).bars()]
    assert edges == sorted(set(edges))
    assert edges[:2] == [0, 1]


def test_heavy_keys_keep_what_is_heavy_and_lack_little():
    rng = random.Random(0)
    stream = ["big"] * 3000 + ["middle"] * 600 + [f"rare{n}" for n in range(6000)]
    rng.shuffle(stream)
    found = HeavyKeys(limit=20)
    for start in range(0, len(stream), 100):
        found = found.merge(HeavyKeys.of({k: (n, 0) for k, n in Counter(stream[start : start + 100]).items()}, 20))
    (first, (big, _)), (second, (middle, _)) = found.heaviest(2)
    assert (first, second) == ("big", "middle")
    assert found.all_votes == (len(stream), 0)
    assert 3000 - len(stream) / 21 <= big <= 3000
    assert 600 - len(stream) / 21 <= middle <= 600
    assert len(found.held) <= 20


def test_a_key_sample_is_exact_for_its_keys_in_any_order():
    counts = {f"k{n}": n % 7 + 1 for n in range(3000)}
    keys = list(counts)
    whole = KeySample.of(counts, 500)
    for seed in range(3):
        random.Random(seed).shuffle(keys)
        merged = KeySample(limit=500)
        for start in range(0, 3000, 400):
            merged = merged.merge(KeySample.of({k: counts[k] for k in keys[start : start + 400]}, 500))
        assert merged == whole
    assert whole.overflown
    assert whole.distinct() == pytest.approx(3000, rel=0.1)
    assert whole.spread().quantile(0.5) == 4
