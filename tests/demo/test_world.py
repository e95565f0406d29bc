"""The small world: its prompts, its rule, its base model (barely taught here) and the votes people leave."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.demo.base import train_base
from bco_ray.demo.votes import judge_answers, judge_model, leave_thumb, sample_votes, write_log
from bco_ray.demo.world import GOOD_STYLES, STYLES, TOPICS, World, school_answer, style_of, thumbs_up
from bco_ray.evaluation.judging import wilson

WORLD = World()
FRANCE = next(p for p in WORLD.prompts if p.text == "What is the capital of France?")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    notes = []
    train_base(directory, seed=1, steps=12, progress=lambda done, total, note: notes.append((done, total)))
    assert notes[-1] == (12, 12)
    return directory


def test_prompts_are_many_distinct_and_split_without_overlap():
    train, held_out = {p.text for p in WORLD.train_prompts}, {p.text for p in WORLD.held_out_prompts}
    assert len(WORLD.prompts) == len(train | held_out) == len(train) + len(held_out)
    assert len(train) > 800
    assert len(held_out) > 200


def test_the_seed_decides_the_split():
    assert World(1).held_out_prompts == World(1).held_out_prompts != WORLD.held_out_prompts


def test_every_fact_is_asked_about_on_both_sides():
    everything = {(topic.name, subject) for topic in TOPICS.values() for subject in topic.facts}
    assert {(p.topic, p.subject) for p in WORLD.train_prompts} == everything
    assert {(p.topic, p.subject) for p in WORLD.held_out_prompts} == everything


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("Good question! The capital of France is Paris. Have a lovely day!", "warm"),
        ("The capital of France is Paris. Hope that helps.", "plain"),
        ("good question the capital of france is PARIS", "warm"),
        ("Paris.", "curt"),
        ("The capital of France is Rome. Hope that helps.", "wrong"),
        ("The capital of France is Paris. In Italy the capital is Rome. Hope that helps.", "wrong"),
        ("Good question! Have a lovely day!", "wrong"),
        ("Duh. The capital of France is Paris. Hope that helps.", "rude"),
        ("It is hard to say. Perhaps you could ask around.", "evasive"),
        ("Good question! Paris. Good question! Paris.", "rambling"),
        ("Good question! " + "The capital of France is Paris and " * 8, "rambling"),
        ("Happy to help! qx vv zpt kkr Paris ooq Hope that helps.", "garbled"),
        ("", "wrong"),
        ("\x00\ufffd{}", "wrong"),
    ],
)
def test_the_rule_reads_text_only(answer, style):
    assert style_of(FRANCE, answer) == style
    assert thumbs_up(FRANCE, answer) == (style in GOOD_STYLES)


def test_a_subject_named_in_the_question_is_no_rival_fact():
    prompt = next(p for p in WORLD.prompts if p.text == "What is 5 plus 1?")
    assert thumbs_up(prompt, "5 plus 1 makes 6. Hope that helps.")
    assert not thumbs_up(prompt, "5 plus 1 makes 7. Hope that helps.")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_the_rule_never_raises(answer):
    assert style_of(FRANCE, answer) in {*STYLES, "garbled"}


def test_school_books_please_the_rule_about_a_third_of_the_time():
    rng = random.Random(0)
    lessons = [(prompt, school_answer(prompt, rng)) for prompt in rng.choices(WORLD.prompts, k=4000)]
    read = Counter(style_of(*lesson) for lesson in lessons)
    assert set(read) == set(STYLES)
    assert 0.27 < sum(read[style] for style in GOOD_STYLES) / len(lessons) < 0.40


def test_prompts_of_ups_and_downs_differ_by_a_detectable_amount():
    rng = random.Random(0)
    ups, downs = Counter(), Counter()
    for prompt in rng.choices(WORLD.train_prompts, k=8000):
        thumb = leave_thumb(prompt, school_answer(prompt, rng), rng)
        if thumb is not None:
            (ups if thumb else downs)[prompt.topic] += 1
    assert 0.58 < _auc(ups, downs) < 0.72


def _auc(ups, downs):
    """Area under the curve of the best guess at the label from the topic alone."""
    ratio = {t: (ups[t] / ups.total()) / (downs[t] / downs.total()) for t in ups}
    wins = sum(ups[a] * downs[b] * ((ratio[a] > ratio[b]) + 0.5 * (ratio[a] == ratio[b])) for a in ratio for b in ratio)
    return wins / (ups.total() * downs.total())


def test_votes_are_on_train_prompts_only_and_the_same_for_a_seed(base):
    votes = sample_votes(base, rows=40, seed=3, model_name="small/1")
    assert votes == sample_votes(base, rows=40, seed=3, model_name="small/1")
    assert len(votes) == len({vote["id"] for vote in votes}) == 40
    asked = {vote["prompt"][0]["content"] for vote in votes}
    assert asked <= {p.text for p in WORLD.train_prompts}
    assert {vote["model"] for vote in votes} == {"small/1"}
    assert all(type(vote["label"]) is bool and vote["completion"][0]["content"] for vote in votes)


def _vote(n):
    return {
        "id": f"v{n}", "prompt": FRANCE.messages, "completion": [{"role": "assistant", "content": "Paris."}],
        "label": n % 2 == 0,
    }  # fmt: skip


def test_the_log_keeps_every_vote_and_adds_broken_lines(tmp_path):
    votes = [_vote(n) for n in range(400)]
    assert write_log(tmp_path / "log" / "feedback.jsonl", votes) == 404
    lines = (tmp_path / "log" / "feedback.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(_parsed, lines) if row is not None]
    assert len(lines) - len(rows) == 1
    assert [row for row in rows if row["id"].startswith("v")] == votes
    broken = [row for row in rows if not row["id"].startswith("v")]
    assert sorted((row["completion"] is True, row["completion"] == [], row["label"] == "maybe") for row in broken) == [
        (False, False, True), (False, True, False), (True, False, False),
    ]  # fmt: skip


def _parsed(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


def test_judging_counts_by_style_and_topic():
    prompts = WORLD.held_out_prompts[:50]
    rng = random.Random(0)
    answers = [school_answer(prompt, rng) for prompt in prompts]
    judgement = judge_answers(prompts, answers)
    ups = sum(map(thumbs_up, prompts, answers))
    assert judgement.thumbs_up_rate == ups / 50
    assert sum(judgement.styles.values()) == judgement.answers == 50
    assert judgement.interval == wilson(ups, 50)
    assert set(judgement.topics) == {p.topic for p in prompts}
    assert len(judgement.samples) == len(judgement.topics)


def test_a_model_is_judged_the_same_way_twice(base):
    prompts = WORLD.held_out_prompts[:8]
    assert judge_model(base, prompts, seed=5) == judge_model(base, prompts, seed=5)


def test_wilson_agrees_with_the_textbook():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
