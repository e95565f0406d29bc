"""benchmarks/real_votes.py: reading, cutting, judging and `--model`, on votes whose right order is known."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bco_ray.errors import DataError
from bco_ray.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[1]
MODULES = ("data", "intervals", "judges")
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    """The modules of the benchmark by their last word, and `main`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        found = {name: importlib.import_module(f"real_votes_{name}") for name in MODULES}
        yield SimpleNamespace(
            **found, main=importlib.import_module("real_votes"), helpsteer=importlib.import_module("helpsteer2_binary")
        )


@pytest.fixture(scope="module")
def votes(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ten prompts, six people; answers with `good` in them are liked, but one person in six likes the others."""
    rows = [
        {
            "prompt": f"Question {prompt}?",
            "completion": f"{'good' if good else 'poor'} answer {prompt}",
            "label": good != (person == 5),
            "user": f"p{person}",
            "id": f"{prompt}-{person}-{good}",
        }
        for prompt in range(10)
        for person in range(6)
        for good in (True, False)
    ]
    rows.append({"prompt": "Question 0?", "completion": " ", "label": True})
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return real.data.read_votes([str(path)])


def test_votes_are_settled_and_answers_counted_once(votes: Any) -> None:
    assert (votes.read, len(votes), votes.drops) == (121, 120, {"empty_completion": 1})
    assert len(votes.texts) == 20
    assert all(("good" in votes.texts[answer][1]) == label for answer, label in _first_person(votes))
    assert len(np.unique(votes.user_N)) == 6


def _first_person(votes: Any) -> list[tuple[int, bool]]:
    rates = np.bincount(votes.answer_N, votes.label_N) / np.bincount(votes.answer_N)
    return [(answer, bool(rate > 0.5)) for answer, rate in enumerate(rates)]


def test_answers_and_votes_apart_are_joined(real: Any, tmp_path: Path) -> None:
    request = {"messages": [{"role": "user", "content": "Hi"}]}
    answer = {"id": "r1", "object": "chat.completion", "request": request}
    answer["choices"] = [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}}]
    ratings = [{"response_id": "r1", "user": "a", "rating": "thumbs_up"}, {"response_id": "r2", "rating": "thumbs_up"}]
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer))
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, ratings)))
    votes = real.data.read_votes([str(tmp_path / "*.jsonl")])
    assert (votes.read, votes.drops, votes.texts) == (2, {"no_response": 1}, [("Hi", "Hello!")])


@pytest.mark.parametrize("by", ["prompt", "user"])
def test_seeds_hold_out_different_groups_and_choose_on_none_of_them(real: Any, votes: Any, by: str) -> None:
    group_N = votes.groups(by)
    cuts = [real.data.split(votes, by, seed, SEEDS) for seed in SEEDS]
    held = [set(group_N[cut.test]) for cut in cuts]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    for cut in cuts:
        assert sorted([*cut.train, *cut.test]) == list(range(len(votes)))
        assert not set(group_N[cut.train]) & set(group_N[cut.test])
        assert set(cut.inner_train) | set(cut.inner_valid) == set(cut.train)
        assert not set(group_N[cut.inner_train]) & set(group_N[cut.inner_valid])
        chosen_on = {*group_N[cut.quick_train], *group_N[cut.quick_valid]}
        assert not chosen_on & set.union(*held)


def test_people_who_are_not_named_cannot_be_held_out(real: Any, tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": "Ho", "label": True}))
    with pytest.raises(DataError, match="--split user: some votes name no user; split by prompt"):
        real.data.split(real.data.read_votes([str(tmp_path / "v.jsonl")]), "user", 0, SEEDS)


def test_auc_over_seeds(real: Any, votes: Any) -> None:
    good_A = np.array([float("good" in completion) for _, completion in votes.texts])
    cuts = [real.data.split(votes, "prompt", seed, SEEDS) for seed in SEEDS]
    judged = [
        real.intervals.Judged(seed, cut.test, {"knows": good_A, "coin": 0 * good_A})
        for seed, cut in zip(SEEDS, cuts, strict=True)
    ]
    found = real.intervals.over_seeds(votes, "prompt", judged, "coin")
    assert found["clusters"] == "6 prompts"
    knows, coin = found["judges"]["knows"], found["judges"]["coin"]
    assert list(knows["seeds"].values()) == pytest.approx([5 / 6] * 3)
    assert (coin["auc"]["value"], coin["over"]["value"]) == (0.5, 0.0)
    assert knows["over"]["value"] == pytest.approx(5 / 6 - 1 / 2)


def test_words_know_a_word(real: Any, votes: Any) -> None:
    pytest.importorskip("sklearn")
    words = importlib.import_module("real_votes_words")
    cut = real.data.split(votes, "prompt", 0, SEEDS)
    for crossed in (False, True):
        scores, _ = words.bag_of_words(votes, cut, crossed=crossed)
        assert real.intervals.auc(scores, votes, cut.test) == pytest.approx(5 / 6)
    by_user = real.data.split(votes, "user", 0, SEEDS)
    assert real.intervals.auc(words.votes_of_others(votes, by_user), votes, by_user.test) in (5 / 6, 1.0)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_directory_is_judged_and_trained(real: Any, votes: Any, tmp_path: Path, adapter: str) -> None:
    """What `--model` does on a GPU machine, with a random model: the reward learns `good` on held-out prompts."""
    model = write_tiny_model(tmp_path / "model", vocab=400)
    words = ["--votes", "v.jsonl", "--model", str(model), "--adapter", adapter, "--losses", "bco", "--epochs", "20"]
    arguments = real.main._arguments([*words, "--learning-rate", "0.01"])
    cut = real.data.split(votes, "prompt", 0, SEEDS)
    scores, chosen = real.judges.judge_from_directory(arguments, tmp_path / "runs", "prompt")(votes, cut, 0)
    reward_A = scores["bco: implicit reward"]
    tested = np.unique(votes.answer_N[cut.test])
    assert np.isfinite(reward_A[tested]).all()
    assert real.intervals.auc(reward_A, votes, cut.test) == pytest.approx(5 / 6)
    assert np.isfinite(scores["untrained: log p per token"]).all()
    assert (chosen["adapter"], chosen["learning_rate"]) == (adapter, 0.01)


def test_a_small_model_is_made_of_the_training_side(real: Any, votes: Any, tmp_path: Path) -> None:
    arguments = real.main._arguments(["--votes", "v.jsonl", "--losses", "bco", "kto"])
    cut = real.data.split(votes, "prompt", 0, SEEDS)
    scores, chosen = real.judges.judge_from_scratch(arguments, tmp_path, "prompt")(votes, cut, 0)
    tested = np.unique(votes.answer_N[cut.test])
    for name in ("bco: implicit reward", "kto: implicit reward", "untrained: log p"):
        assert np.isfinite(scores[name][tested]).all()
    assert chosen["vocabulary"] in real.judges.VOCABULARIES
    assert chosen["learning_rate"] in real.judges.LEARNING_RATES


def test_ties_of_helpsteer2_are_dropped(real: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": p, "response": r, "helpfulness": h}
        for p, r, h in [("a", "1", 4), ("a", "2", 3), ("b", "3", 4), ("b", "4", 4)]
    ]
    source, target = tmp_path / "train.jsonl", tmp_path / "binary.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real.helpsteer.main(str(source), str(target))
    assert [json.loads(line)["response"] for line in target.read_text().splitlines()] == ["1", "2"]
    assert capsys.readouterr().out == "4 rows read, 2 kept, 50.00% thumbs-up\n"
