"""HelpSteer2: helpfulness 4 is a thumbs-up, turns are cut at NeMo's marks, other thresholds are a label map."""

from typing import Any

import pytest

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.errors import Refused
from bco_ray.feedback.formats.helpsteer import FORMAT
from bco_ray.feedback.parsing import resolve_label


def test_one_vote_with_the_other_scales_beside_it(said: Any) -> None:
    assert said("helpsteer")[0] == {
        "kind": "vote",
        "prompt": [{"role": "user", "content": "What is 2+2?"}],
        "completion": "4",
        "label": 4,
        "metadata": {"correctness": 4, "coherence": 4, "complexity": 0, "verbosity": 0},
    }


def test_several_turns_in_one_text(said: Any) -> None:
    assert said("helpsteer")[1]["prompt"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!\nWhat now?"},
        {"role": "user", "content": "Add up 2+2"},
    ]


def test_what_cannot_be_used(said: Any) -> None:
    assert said("helpsteer")[3:] == ["missing_prompt"]


@pytest.mark.parametrize(("helpfulness", "label"), [(4, True), (4.0, True), (3, False), (1, False), (0, False)])
def test_the_papers_threshold(helpfulness: float, label: bool) -> None:
    """In a log of HelpSteer2 `1` is not the common spelling of a thumbs-up."""
    assert resolve_label({"label": helpfulness}, {**DEFAULT_LABEL_MAP, **FORMAT.label_map})["label"] is label


def test_a_dead_zone_is_a_label_map_and_a_mean_is_no_vote() -> None:
    dead_zone = {"0": False, "1": False, "2": None, "3": None, "4": True}
    assert [resolve_label({"label": n}, dead_zone)["label"] for n in range(5)] == [False, False, None, None, True]
    with pytest.raises(Refused, match="3.67"):
        resolve_label({"label": 3.67}, FORMAT.label_map)
