"""The demo's picture and page: drawn from whatever is there, self-contained, and safe to open."""

from html.parser import HTMLParser

import pytest

from bco_ray.demo.report import DemoRound, DemoTotals, before_and_after, draw, write_html
from bco_ray.demo.world import Sample

BASE = DemoRound(
    "base", "bot/1", 0.36, (0.30, 0.42),
    samples=[
        Sample("What is <b>?", "Duh. <script>alert(1)</script>", False, "rude"),
        Sample("Only before", "x", True, "warm"),
    ],
)  # fmt: skip
ROUND = DemoRound(
    "round 1", "bot/2", 0.81, (0.76, 0.86), votes_read=1030, votes_kept=1000,
    drops={"not_json": 10, "empty_completion": 20},
    samples=[Sample("What is <b>?", "Happy to help!", True, "warm")],
    metrics=[
        {"loss": 0.7, "delta": 0.0, "rewards/chosen": 0.0, "rewards/rejected": None},
        {"eval_auc": 0.9},
        {"loss": 0.5, "delta": float("nan"), "rewards/chosen": 0.2, "rewards/rejected": -0.4},
    ],
)  # fmt: skip
TOTALS = DemoTotals({"base model": 30.0, "train": 12.5}, "bot/2", ["bot/1", "bot/2"])


class Page(HTMLParser):
    """Collects tags, the addresses they point at, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)


@pytest.mark.parametrize("rounds", [[BASE], [BASE, ROUND], [BASE, ROUND, ROUND]])
def test_the_picture_is_a_png_for_any_number_of_rounds(rounds, tmp_path):
    path = draw(rounds, tmp_path / "new" / "demo.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_rounds_no_picture(tmp_path):
    with pytest.raises(ValueError, match="no rounds"):
        draw([], tmp_path / "demo.png")


def test_before_and_after_pairs_the_same_question():
    (pair,) = before_and_after([BASE, ROUND])
    assert (pair.before.style, pair.after.style) == ("rude", "warm")


@pytest.fixture
def page(tmp_path):
    png = draw([BASE, ROUND], tmp_path / "demo.png")
    return Page(write_html([BASE, ROUND], TOTALS, png, tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_runs_nothing(page):
    assert [address.split(",")[0] for address in page.addresses] == ["data:image/png;base64"]
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_what_a_model_said_is_shown_as_text(page):
    assert "<script>alert(1)</script>" in page.text
    assert "What is <b>?" in page.text


def test_the_page_tells_the_story(page):
    for words in (
        "Thumbs-up rate from 36 % to 81 % (+45 points)",
        "took 42 seconds",
        "train 12.5",
        "empty_completion 20 not_json 10",
        "bot/1 → bot/2",
        "round 1 bot/2 1,030 1,000 30 81.0 % 76.0 to 86.0 %",
    ):
        assert words in page.text


def test_a_page_with_only_the_base_says_so(tmp_path):
    png = draw([BASE], tmp_path / "demo.png")
    text = Page(write_html([BASE], TOTALS, png, tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "base: 36 % thumbs-up" in text
