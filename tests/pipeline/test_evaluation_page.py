"""The page and the card of an evaluation say what was found, and nothing in them runs."""

from __future__ import annotations

from typing import Any

import pytest

from bco_ray.pipeline.evaluation_charts import charts_of
from bco_ray.pipeline.evaluation_page import card_with, pages_of, render, said
from bco_ray.storage.evaluations import Estimate, Evaluation
from bco_ray.testing.evaluations import made_evaluation

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"Is {n} <b>even</b>?"}],
        "answers": {"bot/2": "<script>alert(1)</script>", "bot/1": None},
        "outcomes": {"bot/1": "win"},
        "votes": ["v"],
        "users": [],
    }
    for n in range(30)
]


@pytest.fixture
def found() -> Evaluation:
    return made_evaluation("bot/2", against="bot/1", gate={"auc": {"min": 0.65}, "kl": {"max": 9}})


def test_the_page_escapes_what_people_and_models_wrote(found: Evaluation) -> None:
    page = render(found, ROWS, [("A title", "AAAA")])
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Is 0 &lt;b&gt;even" in page
    assert "(no room for an answer)" in page
    assert "6 more are in answers.jsonl" in page
    assert "Content-Security-Policy" in page


def test_the_page_says_what_the_gate_says(found: Evaluation) -> None:
    page = render(found, [], [])
    assert "does not pass its gate" in page
    assert "auc: lower bound 0.6 (of 0.7), min is 0.65" in page
    assert "passes its gate" in render(found.model_copy(update={"gate": {"kl": {"max": 9}}}), [], [])
    assert "its gate" not in render(found.model_copy(update={"gate": None}), [], [])
    for text in (
        "0.7 [0.6, 0.8]",
        "<b>5 [3, 7]</b>KL to the reference on its own answers",
        "rule: shorter",
        "lacks &#39;nine&#39;",
        "1 of 2",
        "a note",
    ):
        assert text in page


def test_nothing_measured_is_a_page_too(found: Evaluation) -> None:
    bare = found.model_copy(
        update={"votes": None, "opponents": [], "regression": None, "gate": None, "notes": [],
                "answers": 0, "answer_tokens": Estimate(value=None), "kl_on_policy": Estimate(value=None)}
    )  # fmt: skip
    assert charts_of(bare) == []
    assert "Evaluation of bot/2" in render(bare, [], [])
    assert card_with("# bot\n", bare).startswith("# bot\n\n## Evaluation\n")


def test_the_card_goes_on_from_the_versions_own(found: Evaluation) -> None:
    card = card_with("# bot\n\nTrained.\n", found)
    assert card.startswith("# bot\n\nTrained.\n\n## Evaluation\n")
    assert "| AUC of the implicit reward | 0.7 [0.6, 0.8] |" in card
    assert "12 [10, 14] tokens. KL to the reference on its own answers: 5 [3, 7] nats per answer." in card
    assert "| bot/1 (live) | 0.1 [-0.02, 0.2] | 0.6 [0.45, 0.74] | 9 [8, 10] |" in card
    assert "Regression prompts: 1 of 2 passed.\n- hours: lacks 'nine'" in card
    assert "Gate: not passed.\n- auc: lower bound" in card


def test_all_charts_are_drawn(found: Evaluation) -> None:
    titles = [chart.title for chart in charts_of(found)]
    assert titles == ["Implicit reward of held-out votes", "Chance of a thumbs-up", "Held-out AUC", "Win rate against",
                      "Length of answers, tokens"]  # fmt: skip
    files = pages_of(found, ROWS, "# bot\n")
    assert set(files) == {"report.html", "README.md"}
    assert files["report.html"].count(b"data:image/png;base64,iVBOR") == 5


@pytest.mark.parametrize(
    ("estimate", "text"),
    [(Estimate(value=None), "-"), (None, "-"), (Estimate(value=0.5), "0.5"),
     (Estimate(value=0.5, low=0.25, high=1), "0.5 [0.25, 1]")],
)  # fmt: skip
def test_numbers(estimate: Estimate | None, text: str) -> None:
    assert said(estimate) == text
