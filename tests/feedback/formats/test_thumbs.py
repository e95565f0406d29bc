"""Which scores are a thumb."""

from typing import Any

import pytest

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.errors import Refused
from bco_ray.feedback.formats.thumbs import THUMBS, thumb
from bco_ray.feedback.parsing import resolve_label


@pytest.mark.parametrize(
    ("score", "label"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (-1, False), (-1.0, False), ("1", True),
     ("👍", True), ("thumbs-down", False), ("True", True), ("like", True), ("neutral", None), (None, None)],
)  # fmt: skip
def test_thumbs(score: Any, label: bool | None) -> None:
    fields = {"label": thumb(score, "the score")}
    assert resolve_label(fields, DEFAULT_LABEL_MAP | THUMBS)["label"] is label


@pytest.mark.parametrize(
    "score", [2, 0.5, 4.0, float("nan"), "", "a whole sentence, which is a comment and no thumb", [], {}]
)
def test_scales_and_prose(score: Any) -> None:
    with pytest.raises(Refused, match="the score is") as refused:
        thumb(score, "the score")
    assert refused.value.reason == "not_a_thumb"


def test_other_words_are_left_to_the_label_map() -> None:
    assert thumb("helpful", "the score") == "helpful"
